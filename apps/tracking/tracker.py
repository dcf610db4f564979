"""Tracker: what a place for metrics has to offer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from fedq.apps.user_config import UserConfig


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """The run whose metrics are tracked.

    Attributes:
        key: the same whenever this run is tracked, and that of no other run, also not of another federation. Letters,
            digits, ``-`` and ``_``.
        name: for people.
        config: the run's.
    """

    key: str
    name: str = ""
    config: UserConfig = field(default_factory=dict)


class Tracker(Protocol):
    """A place where the metrics of one run are written to.

    The methods are called from one thread: `begin`, then `log` any number of times, then `end`. The same run may be
    tracked again, as by somebody who lost the connection: it is then told from its beginning, under the same key, and
    a tracker sees to it that each point is shown once.
    """

    def begin(self, run: TrackedRun) -> None:
        """The run is followed from now on. What is raised here reaches the caller."""

    def log(self, step: int, metrics: Mapping[str, float], time: float) -> None:
        """Metrics of a round.

        Args:
            step: the round, 0 for the model before training. Never lower than in the call before.
            metrics: name -> value, NaN among them. Names are ``train/loss``, ``server/accuracy``, ``round/seconds``.
            time: when it ended, in seconds since the epoch.
        """

    def end(self, status: str) -> None:
        """Nothing more comes. ``finished``, ``failed``, ``stopped``, or ``running`` if the run goes on unfollowed."""
