"""A clock that moves only when something waits, and what is to happen at which time."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(order=True)
class _Planned:
    time: float
    number: int
    action: Callable[[], None] = field(compare=False)


class Clock:
    """Virtual seconds since the federation began. Waiting for an hour takes no time."""

    def __init__(self) -> None:
        self._now = 0.0
        self._planned: list[_Planned] = []
        self._count = 0

    @property
    def now(self) -> float:
        """Seconds since the beginning."""
        return self._now

    def at(self, time: float, action: Callable[[], None]) -> None:
        """Plan an action: it happens when somebody waits past that time. Actions of equal time keep their order."""
        heapq.heappush(self._planned, _Planned(time, self._count, action))
        self._count += 1

    @property
    def next_action(self) -> float | None:
        """When the next planned action is due, or None."""
        return self._planned[0].time if self._planned else None

    def advance(self, seconds: float) -> None:
        """Move on, through what is planned in between."""
        if seconds < 0.0:
            raise ValueError(f"time does not go back by {-seconds} s")
        self.advance_to(self._now + seconds)

    def advance_to(self, time: float) -> None:
        """Move on to a time, through what is planned before or at it. A time in the past changes nothing."""
        while self._planned and self._planned[0].time <= time:
            planned = heapq.heappop(self._planned)
            self._now = max(self._now, planned.time)
            planned.action()
        self._now = max(self._now, time)
