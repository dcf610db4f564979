"""History: the rounds of a run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

from fedq.apps.history import tables
from fedq.apps.history.round import PARTS, Round, read_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fedq.apps.strategy.result import Result


class History:
    """The rounds of a run so far, in order.

    It is read off the run's events (`feed`), off the result of a strategy (`take`), or off a file (`from_json`). What
    is told twice counts once: the events of a run that was interrupted and went on, or a result after the events.

    The round 0 is there if something is known of the model before training. A run with several strategies, one after
    the other, has the rounds of each (`Round.strategy`), and steps that count through (`Round.step`).
    """

    def __init__(self, rounds: Sequence[Round] = (), *, total: int | None = None) -> None:
        self.total = total
        """How many rounds the strategy at work is going to have, if it has said so."""
        self._rounds = {(ended.strategy, ended.number): ended for ended in rounds}
        self._strategies = max((ended.strategy for ended in rounds), default=0)
        self._offset = max((ended.offset for ended in rounds), default=0)

    @property
    def rounds(self) -> list[Round]:
        """All rounds, the one before training included."""
        return list(self._rounds.values())

    @property
    def trained(self) -> list[Round]:
        """The rounds without those before training."""
        return [ended for ended in self._rounds.values() if ended.number]

    @property
    def last(self) -> Round | None:
        """The newest round of training."""
        return next((ended for ended in reversed(self._rounds.values()) if ended.number), None)

    @property
    def names(self) -> list[str]:
        """The metrics there are, called ``part/name`` as by `Round.scalars`: first the nodes', then the server's."""
        found = dict.fromkeys(name for ended in self._rounds.values() for name in ended.scalars())
        return sorted(found, key=lambda name: PARTS.index(name.partition("/")[0]))

    @property
    def app_metrics(self) -> dict[str, float]:
        """The newest value of each number that the ServerApp emitted itself."""
        return {
            name: value
            for ended in self._rounds.values()
            for name, value in ended.app.items()
            if isinstance(value, int | float)
        }

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of a metric called as in `names`; both empty if there is none."""
        points = [
            (ended.step, value) for ended in self._rounds.values() if (value := ended.scalars().get(name)) is not None
        ]
        return [step for step, _ in points], [value for _, value in points]

    # -- where it comes from ----------------------------------------------------------------------------------------

    def feed(self, kind: str, data: Mapping[str, Any]) -> Round | None:
        """Take in an event of the run: ``strategy``, ``round`` or ``metric``; others say nothing about rounds.

        Events come in their order, each once. Returns the round that the event said something new about.
        """
        if kind == "strategy":
            return self._begin(data)
        if kind == "round":
            return self._end(data)
        if kind == "metric":
            return self._metric(data)
        return None

    def take(self, result: Result) -> Self:
        """Take in the metrics of a result, which belong to the last strategy; returns itself."""
        strategy, parts = (
            max(1, self._strategies),
            {
                "train": result.train_metrics_clientapp,
                "evaluate": result.evaluate_metrics_clientapp,
                "server": result.evaluate_metrics_serverapp,
            },
        )
        for number in sorted({number for part in parts.values() for number in part}):
            told = {name: dict(part[number]) for name, part in parts.items() if number in part}
            self._keep(replace(self._round(strategy, number), **told))  # type: ignore[arg-type]
        self._rounds = dict(sorted(self._rounds.items()))
        return self

    def _begin(self, data: Mapping[str, Any]) -> Round | None:
        last = self.last
        self._strategies += 1
        self._offset = last.step if last is not None else 0
        self.total = _count(data.get("rounds")) or None
        server = read_metrics(data.get("server"))
        return self._keep(replace(self._round(self._strategies, 0), server=server)) if server else None

    def _end(self, data: Mapping[str, Any]) -> Round | None:
        number = _count(data.get("round"))
        if number is None:
            return None  # an event of the app's own that happens to be called so
        self._strategies = self._strategies or 1
        self.total = _count(data.get("rounds")) or self.total
        seconds = data.get("seconds")
        return self._keep(
            replace(
                self._round(self._strategies, number),
                train=read_metrics(data.get("train")),
                evaluate=read_metrics(data.get("evaluate")),
                server=read_metrics(data.get("server")),
                seconds=float(seconds) if isinstance(seconds, int | float) else None,
                replies=_count(data.get("replies")),
                failures=_count(data.get("failures")),
                unanswered=_count(data.get("unanswered")),
            )
        )

    def _metric(self, data: Mapping[str, Any]) -> Round | None:
        told = read_metrics({str(data.get("name")): data.get("value")}) if "name" in data else {}
        if not told:
            return None
        self._strategies = self._strategies or 1
        number, last = _count(data.get("round")), next(reversed(self._rounds.values()), None)
        if number is None:
            # It belongs to the newest round that is known, under the strategy that had it.
            ended = last if last is not None else self._round(self._strategies, 0)
        else:
            ended = self._round(self._strategies, number)
        return self._keep(replace(ended, app={**ended.app, **told}))

    def _round(self, strategy: int, number: int) -> Round:
        known = self._rounds.get((strategy, number))
        return known if known is not None else Round(number, strategy=strategy, offset=self._offset)

    def _keep(self, ended: Round) -> Round:
        self._rounds[ended.strategy, ended.number] = ended
        return ended

    # -- where it goes ----------------------------------------------------------------------------------------------

    def to_csv(self, path: str | os.PathLike[str] | None = None) -> str:
        """One line a round as comma-separated values, written to ``path`` if given; returns the text.

        The columns are ``step``, ``strategy``, ``round``, ``seconds``, ``replies``, ``failures`` and ``unanswered``,
        then one for each of `names`. What is not known is empty, NaN is ``nan``. Floats are written with the digits
        that bring back the same float. The file is written whole or not at all.
        """
        return tables.to_csv(self, path)

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """The rounds as a JSON document, written to ``path`` if given; returns the text.

        ``{"rounds": [{"round": 1, "train": {"loss": 0.5}, ...}, ...]}``. JSON has no NaN and no infinities: they become
        null. The file is written whole or not at all.
        """
        return tables.to_json(self, path)

    def to_dict(self) -> dict[str, Any]:
        """What `to_json` writes, before it is text."""
        return tables.to_dict(self)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """What `to_json` wrote; null is read as NaN. Raises ValueError if it is something else."""
        return cls(tables.rounds_of(text))

    def plot(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        metrics: Sequence[str] | None = None,
        title: str | None = None,
        baselines: Mapping[str, float | tuple[float, str]] | None = None,
    ) -> Figure:
        """Draw the metrics over the rounds, with matplotlib: one panel for each, a line for each part that has it.

        Args:
            path: a file to draw into, such as ``history.png`` or ``history.pdf``.
            metrics: names without the part, such as ``["accuracy"]``. By default at most four, accuracy and loss first.
            title: above it all.
            baselines: metric -> a value to compare with, drawn as a dashed line; or the value and what to call it.

        Raises:
            MissingExtra: matplotlib is not installed.
        """
        from fedq.apps.history import plot

        return plot.draw(self, path, metrics=metrics, title=title, baselines=baselines or {})

    def __len__(self) -> int:
        return len(self._rounds)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, History) and self.rounds == other.rounds

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        last = self.last
        return f"<History: {len(self.trained)} rounds{f', the last {last.headline}' if last is not None else ''}>"


def _count(value: Any) -> int | None:
    """A whole number, or None: events are whatever the app says."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
