"""The three places where an assignment is executed.

All three are driven by the worker alike: :meth:`Executor.run` executes one assignment and returns how it ended.
"""

from __future__ import annotations

import abc
import math
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedq.relay.jobs.execution import be, execute, serve
from fedq.relay.jobs.frames import Channel, pair
from fedq.relay.jobs.processes import (
    Child,
    adopt_orphans,
    children_of,
    describe_status,
    fork,
    kill_orphans,
    poll,
    reap_orphans,
)
from fedq.relay.jobs.stable import Horse, Stable
from fedq.relay.jobs.watch import Ended, Kill, Watch
from fedq.relay.jobs.work import Assignment, Cause, CauseKind, Isolation

if TYPE_CHECKING:
    from fedq.relay.jobs.worker import AppWorker

__all__ = ["Executor", "ForkExecutor", "RunExecutor", "executor_for"]

KEPT = 4
"""Idle processes that ``run`` isolation keeps per worker, at most."""


class Executor(abc.ABC):
    """Executes assignments for one worker, one at a time."""

    def __init__(self, worker: AppWorker) -> None:
        self.worker = worker
        self._foreign: set[int] = set()

    def open(self) -> None:
        """Called once, before the first assignment."""
        # Descendants that leave their group, to be killed when the process that started them has ended.
        self._foreign = children_of(os.getpid())
        adopt_orphans()

    @abc.abstractmethod
    def run(self, assignment: Assignment, begun: Callable[[], None], watch: Watch) -> Ended:
        """Execute; call ``begun`` when it has been under way for a moment. Whatever still runs of it afterwards,
        :meth:`settle` ends."""

    def settle(self) -> None:  # noqa: B027
        """Called when the outcome has been recorded."""

    def tick(self) -> None:  # noqa: B027
        """Called between jobs: every :meth:`interval` seconds, and when one of :meth:`fds` says something."""

    def fds(self) -> Iterable[int]:
        """Descriptors that end the wait for a job."""
        return ()

    def interval(self) -> float | None:
        """Seconds between calls of :meth:`tick`, None if only :meth:`fds` matter."""
        return None

    def forget(self) -> None:  # noqa: B027
        """Called in a forked child: close what belongs to the parent."""

    def close(self) -> None:  # noqa: B027
        """End everything."""

    def attend(self, child: Child | Horse, channel: Channel, watch: Watch) -> Ended:
        """Watch over a child until it reports, ends or has to be killed. What it asks for is done here."""
        worker = self.worker
        while True:
            signals = worker.signal_fds()
            fds = [channel.fileno(), *signals]
            if child.pidfd is not None:
                fds.append(child.pidfd)
            timeout = child.patience(watch.timeout(worker.stop_at))
            ready = poll(fds, timeout)
            command = not ready.isdisjoint(signals) and worker.hear_commands()
            ended = (child.pidfd is None or child.pidfd in ready) and child.ended()
            for value in channel.receive():
                if isinstance(value, dict) and "ask" in value:
                    channel.send({"answer": watch.assignment.answer(value["ask"])})
                else:
                    watch.hear([value])
            if watch.ended is not None:
                return watch.ended
            if ended:
                return Ended(cause=_cause(child))
            if channel.closed:
                # A dying process closes its files before it can be waited for.
                if child.wait(1.0):
                    return Ended(cause=_cause(child))
                child.kill()
                child.wait(10.0)
                detail = "the app closed the connection to its worker, which has killed it"
                return Ended(cause=Cause(CauseKind.EXIT, detail))
            kill = Kill.COMMAND if command else watch.verdict(worker.stop_at)
            if kill is not None:
                child.kill()
                child.wait(10.0)
                watch.hear(channel.receive())
                return watch.killed(kill)


def _cause(child: Child | Horse) -> Cause:
    status = child.status or 0
    if os.WIFSIGNALED(status):
        return Cause(CauseKind.SIGNAL, f"the process was {describe_status(status)}", code=os.WTERMSIG(status))
    code = os.waitstatus_to_exitcode(status)
    return Cause(CauseKind.EXIT, f"the process {describe_status(status)} without an answer", code=code)


class ForkExecutor(Executor):
    """A fresh process for each assignment, forked from the worker's stable, which is there from the first one on until
    a while after the last: a worker that has nothing to do keeps no memory for it."""

    _stable: Stable | None = None
    _horse: Horse | None = None
    _leave: float = math.inf

    def run(self, assignment: Assignment, begun: Callable[[], None], watch: Watch) -> Ended:
        """Have a horse forked, tell it what to do, and watch over it."""
        self._leave = math.inf
        self._horse, channel = self._ready().start()
        try:
            channel.send(assignment.describe())
            # While it comes to life.
            channel.send({"ahead": assignment.ahead()})
            watch.show(begun)
            return self.attend(self._horse, channel, watch)
        finally:
            channel.close()
            # Before anybody speaks for it: what a stable that has died left behind ends here.
            self._look()

    def _ready(self) -> Stable:
        self._look()
        if self._stable is None:
            self._stable = Stable(self.worker.forked, self.worker.source.preload, self._work)
        return self._stable

    def _work(self, channel: Channel) -> bool:
        source = self.worker.source
        description = channel.receive_one()
        if description is None:  # the worker has died
            return False
        return execute(source, source.rebuild(description), channel, ahead=True)

    def settle(self) -> None:
        """Wait for the end of the horse, which has nothing to do any more."""
        horse, self._horse = self._horse, None
        if horse is not None and not horse.wait(2.0):  # threads or handlers of the app keep it
            horse.kill()
            horse.wait(10.0)
        self._look()
        self._leave = time.monotonic() + self.worker.timing.keep

    def fds(self) -> Iterable[int]:
        """What tells that the stable has died."""
        return [] if self._stable is None else [self._stable.fileno()]

    def interval(self) -> float | None:
        """Until a stable is of no use any more."""
        return None if self._stable is None else max(0.0, self._leave - time.monotonic())

    def tick(self) -> None:
        """Let go of a stable that has died, or that has had nothing to do for a while."""
        self._look()
        if self._stable is not None and time.monotonic() >= self._leave:
            self._drop()

    def _look(self) -> None:
        if self._stable is not None and not self._stable.alive:
            self._drop()

    def _drop(self) -> None:
        """Let go of the stable, and end what one that has died had to."""
        if self._stable is not None:
            self._stable.close()
            self._stable = None
            kill_orphans(self._foreign)

    def forget(self) -> None:
        """Close what leads to the stable."""
        if self._stable is not None:
            self._stable.forget()

    def close(self) -> None:
        """Kill what may be there."""
        if self._horse is not None:
            self._horse.kill()
        self.settle()
        self._drop()


@dataclass(slots=True)
class _Kept:
    child: Child
    channel: Channel


class RunExecutor(Executor):
    """A process for each group, started at its first assignment and kept for the later ones."""

    def __init__(self, worker: AppWorker, most: int = KEPT) -> None:
        super().__init__(worker)
        self.most = most
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._asked = time.monotonic()

    def run(self, assignment: Assignment, begun: Callable[[], None], watch: Watch) -> Ended:
        """Hand it to the group's process, and watch over that."""
        group = assignment.group
        kept = self._kept.pop(group, None)
        if kept is None or kept.child.ended() or not kept.channel.send(assignment.describe()):
            if kept is not None:
                self._end(kept)
            kept = self._start(group)
            kept.channel.send(assignment.describe())
        watch.show(begun)
        ended: Ended | None = None
        try:
            ended = self.attend(kept.child, kept.channel, watch)
            return ended
        finally:
            if ended is not None and ended.outcome is not None and not kept.child.ended():
                self._kept[group] = kept
                while len(self._kept) > self.most:
                    self._end(self._kept.popitem(last=False)[1])
            else:
                self._end(kept)

    def _start(self, group: str) -> _Kept:
        ours, theirs = pair()
        child = fork()
        if child is None:

            def body() -> None:
                ours.close()
                self.worker.forked()
                serve(self.worker.source, theirs)

            be(body, theirs)
        theirs.close()
        return _Kept(child, ours)

    def _end(self, kept: _Kept) -> None:
        kept.channel.close()
        kept.child.kill()
        kept.child.wait(10.0)

    def settle(self) -> None:
        """Kill orphans, if there is no kept process to which they may be of use."""
        if self._kept:
            reap_orphans(self._foreign | {kept.child.pid for kept in self._kept.values()})
        else:
            kill_orphans(self._foreign)

    def tick(self) -> None:
        """End the processes that died or whose group is over."""
        for group, kept in list(self._kept.items()):
            if kept.child.ended() or kept.channel.receive() or kept.channel.closed:
                self._end(self._kept.pop(group))
        if self._kept and time.monotonic() >= self._asked + self.worker.timing.alive:
            self._asked = time.monotonic()
            for group in list(self._kept):
                if not self.worker.group_alive(group):
                    self._end(self._kept.pop(group))
        self.settle()

    def interval(self) -> float | None:
        """As long as processes are kept, somebody has to ask whether they are still of use."""
        return self.worker.timing.alive if self._kept else None

    def fds(self) -> Iterable[int]:
        """What tells that a kept process has ended."""
        return [kept.child.pidfd for kept in self._kept.values() if kept.child.pidfd is not None] + [
            kept.channel.fileno() for kept in self._kept.values()
        ]

    def forget(self) -> None:
        """Close the channels to the siblings."""
        for kept in self._kept.values():
            kept.channel.close()
        self._kept.clear()

    def close(self) -> None:
        """End every kept process."""
        while self._kept:
            self._end(self._kept.popitem()[1])
        self.settle()


def executor_for(isolation: Isolation, worker: AppWorker) -> Executor:
    """The executor of that isolation."""
    match isolation:
        case Isolation.FORK:
            return ForkExecutor(worker)
        case Isolation.RUN:
            return RunExecutor(worker)
        case Isolation.INLINE:
            from fedq.relay.jobs.inline import InlineExecutor

            return InlineExecutor(worker)
