"""What the parent watches while an assignment is executed: time limit, renewals, shutdown."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from fedq.relay.jobs.ticker import Ticker
from fedq.relay.jobs.work import Assignment, Cause, CauseKind, Outcome, Stage, Verdict

__all__ = ["Ended", "Kill", "Timing", "Watch"]


@dataclass(frozen=True, slots=True)
class Timing:
    """Intervals in seconds."""

    renew: float = 1.0
    """Between renewals; the first comes when a job has been running for as long."""
    show: float = 0.2
    """After which a job is shown as started. One that ends sooner goes from queued to finished."""
    heartbeat: float = 15.0
    """Between RQ's heartbeats of a job."""
    linger: float = 10.0
    """That a process may take to end after it has committed."""
    alive: float = 1.0
    """Between questions whether a kept process is still of use."""
    keep: float = 60.0
    """After the last job, until a worker lets go of the process from which it has its horses."""


class Kill(StrEnum):
    """Why the executing process has to be killed now."""

    TIME_LIMIT = "time limit"
    STOPPED = "stopped"
    LINGERING = "lingering"
    SHUTDOWN = "shutdown"
    COMMAND = "command"


@dataclass(frozen=True, slots=True)
class Ended:
    """How an execution ended: exactly one of the three is set."""

    outcome: Outcome | None = None
    cause: Cause | None = None
    released: bool = False


class Watch:
    """The state of one execution, as far as its parent knows it.

    :meth:`hear` takes what the child reports, :meth:`timeout` says how long one may wait, :meth:`verdict` whether to
    kill. Renewals run in a thread, so that a server that does not answer holds up neither the time limit nor a signal.
    """

    def __init__(
        self,
        assignment: Assignment,
        timing: Timing,
        *,
        wake: Callable[[], None],
        heartbeat: Callable[[], None] | None = None,
        limit: float | None = None,
    ) -> None:
        self.assignment = assignment
        self.timing = timing
        self.limit = limit
        self.ended: Ended | None = None
        self._wake = wake
        self._heartbeat = heartbeat
        self._started = time.monotonic()
        self._deadline = None if limit is None else self._started + limit
        self._app_begun = False
        self._done: float | None = None
        self._renewals: Ticker | None = None
        self._heartbeats: Ticker | None = None
        self._show: Callable[[], None] | None = None
        self._over = False

    def show(self, show: Callable[[], None]) -> None:
        """Have the job shown as started by ``show``, once, if it runs for as long as :attr:`Timing.show`."""
        self._show = show

    def hear(self, values: list[Any]) -> None:
        """Take what the executing process has sent."""
        for value in values:
            if not isinstance(value, dict) or self.ended is not None:
                continue
            if "stage" in value:
                self._app_begun = True
                if value["stage"] == Stage.FINISHED:
                    self._deadline = None
                elif self.limit is not None:
                    self._deadline = time.monotonic() + self.limit
            elif "outcome" in value:
                self.ended = Ended(outcome=Outcome.from_json(value["outcome"]))
            elif "raised" in value:
                cause = Cause(CauseKind.EXIT, value["raised"], traceback=value.get("traceback"), code=1)
                self.ended = Ended(cause=cause)

    def timeout(self, stop_at: float | None) -> float:
        """Seconds until something is due."""
        due = [self._started + self.timing.renew] if self._renewals is None else []
        if self._show is not None:
            due.append(self._started + self.timing.show)
        if self._heartbeat is not None and self._heartbeats is None:
            due.append(self._started + self.timing.heartbeat)
        due += [moment for moment in (self._deadline, self._done, stop_at) if moment is not None]
        return max(0.0, min(due, default=time.monotonic() + 3600.0) - time.monotonic())

    def verdict(self, stop_at: float | None) -> Kill | None:
        """Whether to kill now, and why. Starts what is due: showing the job, renewals, heartbeats."""
        now = time.monotonic()
        if self._show is not None and now >= self._started + self.timing.show:
            show, self._show = self._show, None
            show()
            if self._over:  # as was heard just now
                return None
        if self._renewals is None and now >= self._started + self.timing.renew:
            self._renewals = Ticker(f"renew run {self.assignment.group}", self.timing.renew, self._renew, self._wake)
        if self._heartbeat is not None and self._heartbeats is None and now >= self._started + self.timing.heartbeat:
            self._heartbeats = Ticker("RQ heartbeat", self.timing.heartbeat, self._heartbeat, self._wake)
        learned = self._renewals.result if self._renewals is not None else None
        if learned is Verdict.DONE and self._done is None:
            self._deadline, self._done = None, now + self.timing.linger
        if learned is Verdict.STOP:
            return Kill.STOPPED
        if self._deadline is not None and now >= self._deadline:
            return Kill.TIME_LIMIT
        if self._done is not None and now >= self._done:
            return Kill.LINGERING
        if stop_at is not None and now >= stop_at:
            return Kill.SHUTDOWN
        return None

    def killed(self, reason: Kill) -> Ended:
        """What to conclude from having killed for ``reason`` (what the child has reported before counts more)."""
        if self.ended is not None:
            return self.ended
        match reason:
            case Kill.LINGERING:
                return Ended(outcome=Outcome("committed", {"lingered": True}))
            case Kill.SHUTDOWN:
                return Ended(released=True)
            case Kill.TIME_LIMIT if not self._app_begun:
                # Not the app's doing: all that comes before it waits for the server, which may have been away.
                detail = f"killed, as the app had not begun within its time limit of {self.limit:g} s"
                return Ended(cause=Cause(CauseKind.EXIT, detail))
            case Kill.TIME_LIMIT:
                return Ended(cause=Cause(CauseKind.TIME_LIMIT, f"killed at its time limit of {self.limit:g} s"))
            case Kill.STOPPED:
                return Ended(cause=Cause(CauseKind.STOPPED, "stopped, cancelled or superseded"))
            case Kill.COMMAND:
                return Ended(cause=Cause(CauseKind.SIGNAL, "killed by a command to the RQ worker", code=9))

    def end(self, timeout: float | None = None) -> None:
        """Stop renewing. Returns when no renewal is under way any more, or after ``timeout`` seconds."""
        self._over = True
        for ticker in (self._renewals, self._heartbeats):
            if ticker is not None:
                ticker.end(timeout)

    def _renew(self) -> Verdict | None:
        verdict = self.assignment.renew()
        return None if verdict is Verdict.OK else verdict
