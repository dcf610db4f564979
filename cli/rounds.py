"""What a run's events say about its rounds: the numbers that a person wants to see of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

FIRST = ("accuracy", "loss")
"""Metrics that are shown before the others."""

NOT_SHOWN = ("num-examples",)
MOST_COLUMNS = 4


@dataclass(frozen=True, slots=True)
class Round:
    """One round: number 0 is the model before training."""

    number: int
    metrics: Mapping[str, float]
    seconds: float | None = None
    replies: int | None = None
    failures: int = 0
    unanswered: int = 0

    def pick(self, word: str) -> float | None:
        """The metric called ``word``, or the first whose name holds it, such as ``eval_acc`` for ``acc``."""
        if word in self.metrics:
            return self.metrics[word]
        return next((value for name, value in self.metrics.items() if word in name.lower()), None)

    @property
    def accuracy(self) -> float | None:
        """The accuracy of the round, under whatever name."""
        return self.pick("accuracy") if self.pick("accuracy") is not None else self.pick("acc")

    @property
    def loss(self) -> float | None:
        """The loss of the round, under whatever name."""
        return self.pick("loss")


def headline(data: Mapping[str, Any]) -> dict[str, float]:
    """The metrics to show of a ``round`` event: the server's, else the nodes' evaluation, else those of training."""
    for source in ("server", "evaluate", "train"):
        metrics = data.get(source)
        if isinstance(metrics, Mapping):
            shown = {
                str(name): float(value)
                for name, value in metrics.items()
                if isinstance(value, (int, float)) and not isinstance(value, bool) and name not in NOT_SHOWN
            }
            if shown:
                return shown
    return {}


def columns(metrics: Mapping[str, float]) -> list[str]:
    """The names of the metrics to show, in their order."""
    first = [name for name in FIRST if name in metrics]
    return [*first, *(name for name in metrics if name not in first)][:MOST_COLUMNS]


@dataclass(slots=True)
class History:
    """The rounds of a run so far, read off its events."""

    total: int | None = None
    rounds: list[Round] = field(default_factory=list)
    initial: Round | None = None
    custom: dict[str, float] = field(default_factory=dict)
    """Numbers that the ServerApp emitted by events of its own (kind ``metric``: a name and a value)."""

    def feed(self, kind: str, data: Mapping[str, Any]) -> Round | None:
        """Take an event in; returns the round that it ended."""
        if kind == "strategy":
            self.total = int(data.get("rounds") or 0) or self.total
            if metrics := headline(data):
                self.initial = self.initial or Round(0, metrics)
        elif kind == "metric":
            if isinstance(value := data.get("value"), (int, float)):
                self.custom[str(data.get("name"))] = float(value)
        elif kind == "round":
            number = int(data["round"])
            self.total = int(data.get("rounds") or 0) or self.total
            ended = Round(
                number,
                headline(data),
                data.get("seconds"),
                data.get("replies"),
                int(data.get("failures") or 0),
                int(data.get("unanswered") or 0),
            )
            self.rounds = [earlier for earlier in self.rounds if earlier.number != number]
            self.rounds.append(ended)
            return ended
        return None

    @property
    def last(self) -> Round | None:
        """The newest round."""
        return self.rounds[-1] if self.rounds else None
