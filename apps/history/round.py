"""Round: what is known of one round."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Value = int | float | list[int] | list[float]
Metrics = Mapping[str, Value]

PARTS = ("train", "evaluate", "server", "app")
"""Who measured: the nodes in training, the nodes in evaluation, the server, or the ServerApp by an event of its own."""

COUNTS = ("seconds", "replies", "failures", "unanswered")

NO_METRIC = ("num-examples",)
"""What strategies weight by; counted and exported, but no figure of merit."""


@dataclass(frozen=True, slots=True)
class Round:
    """One round of a strategy. Metrics are numbers or lists of numbers, NaN among them.

    Attributes:
        number: counted from 1 by the strategy; 0 is the model before training.
        train, evaluate: the nodes' metrics, as the strategy aggregated them.
        server: what ``evaluate_fn`` returned.
        app: numbers that the ServerApp emitted itself: ``grid.emit("metric", {"name": ..., "value": ...})``.
        seconds: how long it took, None if that is not known.
        replies, failures, unanswered: how many replies were used, were not used, and did not come.
        strategy: which of its run, counted from 1; nearly always the only one.
        offset: how many rounds the strategies before it had in this run.
    """

    number: int
    train: Metrics = field(default_factory=dict)
    evaluate: Metrics = field(default_factory=dict)
    server: Metrics = field(default_factory=dict)
    app: Metrics = field(default_factory=dict)
    seconds: float | None = None
    replies: int | None = None
    failures: int | None = None
    unanswered: int | None = None
    strategy: int = 1
    offset: int = 0

    @property
    def step(self) -> int:
        """The round counted through all strategies of the run: what goes on the x-axis."""
        return self.offset + self.number

    def scalars(self) -> dict[str, float]:
        """All metrics as numbers, called ``part/name``; of a list ``part/name.0``, ``part/name.1`` and so on."""
        return {f"{part}/{name}": value for part in PARTS for name, value in flat(getattr(self, part))}

    @property
    def headline(self) -> dict[str, float]:
        """The numbers that a person looks at: the server's, or else the nodes' in evaluation, or else in training."""
        for part in ("server", "evaluate", "train"):
            shown = {
                name: float(value)
                for name, value in getattr(self, part).items()
                if isinstance(value, int | float) and name not in NO_METRIC
            }
            if shown:
                return shown
        return {}

    def pick(self, word: str) -> float | None:
        """Of the headline the metric called ``word``, or the first with it in its name: ``eval_acc`` for ``acc``."""
        metrics = self.headline
        return metrics.get(word, next((value for name, value in metrics.items() if word in name.lower()), None))

    @property
    def accuracy(self) -> float | None:
        """The headline's accuracy, under whatever name."""
        found = self.pick("accuracy")
        return found if found is not None else self.pick("acc")

    @property
    def loss(self) -> float | None:
        """The headline's loss, under whatever name."""
        return self.pick("loss")


def flat(metrics: Metrics) -> Iterator[tuple[str, float]]:
    """Name and value of each number, those of lists one by one."""
    for name, value in metrics.items():
        if isinstance(value, list):
            yield from ((f"{name}.{place}", item) for place, item in enumerate(value))
        else:
            yield name, value


def read_metrics(data: Any) -> dict[str, Value]:
    """Metrics as they stand in an event or in JSON: null is NaN, whatever is no number is left out."""
    if not isinstance(data, Mapping):
        return {}
    found: dict[str, Value] = {}
    for name, value in data.items():
        read = [_number(item) for item in value] if isinstance(value, list) else _number(value)
        if isinstance(read, list):
            if all(item is not None for item in read):
                found[str(name)] = read  # type: ignore[assignment]
        elif read is not None:
            found[str(name)] = read
    return found


def _number(value: Any) -> int | float | None:
    if value is None:
        return math.nan
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
