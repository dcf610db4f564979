"""Tracking: from a run's events to its trackers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

from fedq.apps.history import History, Round
from fedq.apps.history.round import COUNTS
from fedq.apps.tracking.tracker import TrackedRun, Tracker

log = logging.getLogger(__name__)


class HappenedEvent(Protocol):
    """An event of a run: `fedq.relay.Event`, or that of `fedq.apps.testing`."""

    @property
    def kind(self) -> str:
        """Such as ``round``."""
        ...

    @property
    def data(self) -> Mapping[str, Any]:
        """JSON values."""
        ...

    @property
    def time(self) -> float:
        """When, in seconds since the epoch."""
        ...


class Tracking:
    """Feeds trackers with the events of a run; a context manager.

    Steps are rounds. What was told already is not told again, so that an event which comes twice makes one point. A
    tracker that fails on the way is left out from then on: the run is worth more than its picture.

    Args:
        run: the run.
        trackers: where to. What their `begin` raises is raised on entering; those that had begun are ended then.
        on_failure: called with a sentence when a tracker fails on the way; by default it is logged as a warning.
    """

    def __init__(
        self, run: TrackedRun, trackers: Sequence[Tracker], *, on_failure: Callable[[str], None] | None = None
    ) -> None:
        self.history = History()
        """The rounds so far."""
        self._run = run
        self._trackers = list(trackers)
        self._on_failure = on_failure or log.warning
        self._told: dict[tuple[int, str], float] = {}
        self._status = "running"

    def __enter__(self) -> Self:
        waiting, self._trackers = self._trackers, []
        try:
            for tracker in waiting:
                tracker.begin(self._run)
                self._trackers.append(tracker)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def event(self, event: HappenedEvent) -> None:
        """Take in the run's next event, of whatever kind."""
        if event.kind == "status" and isinstance(status := event.data.get("status"), str):
            self._status = status
            return
        ended = self.history.feed(event.kind, event.data)
        # A later strategy begins with the model that the one before it has ended with: there is a point already.
        if ended is None or (ended.number == 0 and ended.offset > 0):
            return
        new = {
            name: value
            for name, value in metrics_of(ended).items()
            if repr(self._told.get((ended.step, name))) != repr(value)  # NaN is not equal to itself
        }
        if new:
            self._told.update({(ended.step, name): value for name, value in new.items()})
            self._each(lambda tracker: tracker.log(ended.step, new, event.time))

    def _end(self) -> None:
        status = self._status if self._status in ("finished", "failed", "stopped") else "running"
        self._each(lambda tracker: tracker.end(status))
        self._trackers = []

    def _each(self, do: Callable[[Tracker], None]) -> None:
        for tracker in list(self._trackers):
            try:
                do(tracker)
            except Exception as error:
                self._trackers.remove(tracker)
                self._on_failure(
                    f"the tracker {type(tracker).__name__} is left out from here on: {type(error).__name__}: {error}"
                )


def track(events: Iterable[HappenedEvent], run: TrackedRun, *trackers: Tracker) -> History:
    """Feed trackers with events until there are no more; returns the rounds."""
    with Tracking(run, trackers) as tracking:
        for event in events:
            tracking.event(event)
    return tracking.history


def metrics_of(ended: Round) -> dict[str, float]:
    """What trackers are told of a round: its metrics, and how it went as ``round/seconds`` and so on."""
    counts = {f"round/{name}": value for name in COUNTS if (value := getattr(ended, name)) is not None}
    return {**ended.scalars(), **counts}
