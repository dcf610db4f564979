"""``inline`` isolation: the worker's own process executes, a side process watches over it.

The side process renews the lease, enforces the time limit, and shows the job as started when it has been running for a
moment. When the worker has to be killed it is stopped first
(SIGSTOP), so that it commits nothing while the side process answers for it, and then killed; the supervisor starts a
new one. When the worker dies by itself in the middle of a job, the side process outlives it to say so.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError
from rq.utils import now, utcformat, utcparse

from fedq.relay.jobs.execution import be
from fedq.relay.jobs.frames import Channel, Wakeup, pair
from fedq.relay.jobs.heap import keep_freed
from fedq.relay.jobs.isolation import Executor, ForkExecutor
from fedq.relay.jobs.job import FedqJob, fetch
from fedq.relay.jobs.processes import Child, fork, poll
from fedq.relay.jobs.watch import Ended, Watch
from fedq.relay.jobs.work import Assignment, Cause, CauseKind, Stage, bind_stage

if TYPE_CHECKING:
    from fedq.relay.jobs.worker import AppWorker

__all__ = ["InlineExecutor"]

log = logging.getLogger("fedq.worker")

SPEAK = 15.0
"""Seconds that the side process tries to reach the server after the worker's death."""
TELLS = 30.0
"""Seconds that it may take to tell whether it has shown a job as started: it may be about to, and the server away."""
HOLD = 60.0
"""Seconds that it keeps a worker stopped while the server is away; then the message is tried again instead."""


class InlineExecutor(Executor):
    """Executes in the worker's process."""

    _side: Child | None = None
    _channel: Channel | None = None
    _alarm: Wakeup | None = None

    def open(self) -> None:
        """Start the side process. What the app starts, as pools of its own, is left alone between messages."""
        keep_freed()
        self._ensure_side()

    def _ensure_side(self) -> Channel:
        if self._channel is not None and self._side is not None and not self._side.ended():
            return self._channel
        self.close()
        self._alarm = Wakeup()
        ours, theirs = pair()
        worker, alarm = os.getpid(), self._alarm
        child = fork(outlives_parent=True)
        if child is None:

            def body() -> None:
                ours.close()
                self.worker.forked()
                _Side(self.worker, worker, theirs, alarm).watch()

            be(body)
        theirs.close()
        self._side, self._channel = child, ours
        # Written by the C handler: the side process hears of a shutdown even while the app lets no Python code run.
        signal.set_wakeup_fd(self._alarm.write_fd, warn_on_full_buffer=False)
        if self.worker.context is not None:
            self.worker.context.spare(child.pid)
        return ours

    def run(self, assignment: Assignment, begun: Callable[[], None], watch: Watch) -> Ended:
        """Execute here. Neither ``begun`` nor ``watch`` is used: the side process has its own."""
        channel = self._ensure_side()
        job = self.worker.job
        assert job is not None
        began = time.monotonic()
        since = utcformat(job.started_at or now())
        channel.send({"assignment": assignment.describe(), "job": job.id, "since": since, "limit": watch.limit})
        bind_stage((lambda stage: _announce(channel, stage)) if assignment.time_limit is not None else None)
        try:
            with self.worker.source.capture(assignment):
                outcome = assignment.execute()
        except Exception as error:
            detail = f"{type(error).__name__}: {error}"
            return Ended(cause=Cause(CauseKind.EXIT, detail, traceback=traceback.format_exc(), code=1))
        except SystemExit as error:
            detail = f"SystemExit: {error}"
            return Ended(cause=Cause(CauseKind.EXIT, detail, traceback=traceback.format_exc(), code=1))
        finally:
            bind_stage(None)
            # The side process has known of the job for less time than we: it has not shown it if that was too short.
            # (By half, since it may take us a while to say that it is over.)
            shown = time.monotonic() >= began + watch.timing.show / 2
            channel.send({"over": True, "tell": shown})
            if shown:
                self._hear_how_shown(channel)
        return Ended(outcome=outcome)

    def _hear_how_shown(self, channel: Channel) -> None:
        """Let the side process tell under which id it has shown the job as started, if it has."""
        give_up = time.monotonic() + TELLS
        while not channel.closed and (left := give_up - time.monotonic()) > 0:
            poll([channel.fileno(), *self.fds()], left)
            for value in channel.receive():
                if isinstance(value, dict) and "shown" in value:
                    if value["shown"] is not None:
                        self.worker.shown_as(value["shown"])
                    return
            if self._side is None or self._side.ended():
                return
        log.warning("the side process does not tell whether it has shown the job as started")

    def fds(self) -> Iterable[int]:
        """What tells that the side process has ended."""
        return [self._side.pidfd] if self._side is not None and self._side.pidfd is not None else []

    def tick(self) -> None:
        """Start a new side process if it has ended."""
        self._ensure_side()

    def forget(self) -> None:
        """Nothing: the side process uses what it needs of this."""

    def close(self) -> None:
        """End the side process."""
        if self._side is not None:
            signal.set_wakeup_fd(-1)
            if self._channel is not None:
                self._channel.close()
            if not self._side.wait(2.0):
                self._side.kill()
                self._side.wait(10.0)
            self._side = self._channel = None
        if self._alarm is not None:
            self._alarm.close()
            self._alarm = None


def _announce(channel: Channel, stage: Stage) -> None:
    channel.send({"stage": stage.value})


class _Side:
    """The side process: waits for jobs to begin and end, and acts when one has to be killed."""

    def __init__(self, worker: AppWorker, pid: int, channel: Channel, alarm: Wakeup) -> None:
        self.worker = worker
        self.pid = pid
        self.channel = channel
        self.alarm = alarm
        self.wakeup = Wakeup()
        # This process is a copy of the worker, and uses its methods to answer and to record.
        worker.wakeup, worker.executor, worker.stop_at = self.wakeup, ForkExecutor(worker), None
        worker.birth_date = worker.last_heartbeat = now()  # forked before the worker has registered
        self.stop_at: float | None = None
        self.job: FedqJob | None = None
        self.current: dict[str, Any] | None = None
        self.shown: str | None = None  # the id of the execution, once the job is shown as started
        self.assignment: Assignment | None = None
        self.watched: Watch | None = None

    def watch(self) -> None:
        """Serve until the worker closes the channel or dies."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        parent = _open_pidfd(self.pid)
        fds = [self.channel.fileno(), self.alarm.fileno(), self.wakeup.fileno()]
        if parent is not None:
            fds.append(parent)
        while True:
            timeout = self.watched.timeout(self.stop_at) if self.watched is not None else None
            if parent is None:
                timeout = min(0.25, timeout if timeout is not None else 0.25)
            ready = poll(fds, timeout)
            self.wakeup.drain()
            if self.alarm.drain() and self.stop_at is None:
                self.stop_at = time.monotonic() + self.worker.grace
            for value in self.channel.receive():
                self._hear(value)
            dead = os.getppid() != self.pid or (parent is not None and parent in ready)
            if dead:
                self._worker_died()
                return
            if self.channel.closed and self.watched is None:
                return
            if self.channel.closed:
                # A dying process closes its files before it is seen as dead. If it goes on living, then the app has
                # closed the channel, and nobody watches over it any more.
                if parent is None or not poll([parent], 1.0):
                    self._kill_worker()
                self._worker_died()
                return
            watched = self.watched
            if watched is None or (kill := watched.verdict(self.stop_at)) is None:
                continue
            if self.watched is watched:  # else it is over, as was heard just now
                self._kill(watched.killed(kill))
                return

    def _hear(self, value: Any) -> None:
        if not isinstance(value, dict):
            return
        if "assignment" in value:
            self.current = value
            self.assignment = self.worker.source.rebuild(value["assignment"])
            self.watched = Watch(
                self.assignment, self.worker.timing, wake=self.wakeup.wake, heartbeat=self._beat, limit=value["limit"]
            )
            self.watched.show(self._show)
        elif "over" in value:
            if self.watched is not None:
                self.watched.end()
            if value.get("tell"):
                self.channel.send({"shown": self.shown})
            self.current = self.assignment = self.watched = self.job = self.shown = None
        elif self.watched is not None:
            self.watched.hear([value])

    def _show(self) -> None:
        """Show the job as started, unless it is over: then the worker has said so before this moment."""
        current = self.current
        for value in self.channel.receive():
            self._hear(value)
        if current is None or self.current is not current:
            return
        try:
            if (job := self._fetch()) is not None:
                execution = self.worker.records.started(job)
                self.worker.executions.pop(execution.id, None)  # it is the worker who ends it
                self.shown = execution.id
        except RedisError as error:  # shown late or never, but executed
            log.warning("job %s could not be recorded as started: %s", current["job"], error)

    def _beat(self) -> None:
        job = self._fetch()
        if job is not None and self.shown is not None:
            records = self.worker.records
            records.running(job, records.execution(job, self.shown))

    def _fetch(self) -> FedqJob | None:
        if self.job is None and self.current is not None:
            self.job = fetch(self.current["job"], self.worker.connection)
            if self.job is not None:
                self.job.started_at = utcparse(self.current["since"])
                self.job.worker_name = self.worker.name
        return self.job

    def _kill(self, ended: Ended) -> None:
        """Stop the worker, answer, kill it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGSTOP)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(self.pid, signal.SIGSTOP)
        try:
            self._conclude(ended, HOLD)
        finally:
            self._kill_worker()

    def _kill_worker(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getpgid(self.pid) == self.pid:
                os.killpg(self.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def _worker_died(self) -> None:
        if self.watched is None:
            return
        cause = Cause(CauseKind.SIGNAL, "the worker's process died while it executed the app")
        self._conclude(Ended(cause=cause), SPEAK)

    def _conclude(self, ended: Ended, patience: float) -> None:
        assert self.watched is not None
        assert self.assignment is not None
        assert self.current is not None
        worker = self.worker
        self.watched.end(5.0)
        worker.stop_at = time.monotonic() + patience
        text = worker.answer(self.assignment, ended)
        try:
            job = self._fetch()
            if job is not None:
                execution = worker.records.execution(job, self.shown) if self.shown is not None else None
                worker.record(job, execution, ended, text)
            worker.records.dead()
        except Exception as error:
            log.warning("the end of a job could not be recorded: %s: %s", type(error).__name__, error)


def _open_pidfd(pid: int) -> int | None:
    if hasattr(os, "pidfd_open"):
        with contextlib.suppress(OSError):
            return os.pidfd_open(pid)
    return None
