"""The stable: a quiet process from which a worker's horses are forked.

A worker that forked them itself would pay for each fork twice: the kernel copies again every page that the worker
writes to afterwards, a thousand of them for the records of one job. The stable is forked from the worker once, for its
first job; it does nothing between forks, and so has next to nothing copied. What a horse must have undone, such as
signal handlers, is undone in it once. What horses need is loaded in it once too, in small steps while it waits, as soon
as it is asked for a second one.

It is the parent of its horses: it dies with the worker, they die with it, and it ends what they leave running. ::

    worker ── stable ── horse (one at a time)

Between worker and stable are records of a fixed size. A start brings the horse's end of a channel along; everything
else between worker and horse goes over that.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator

from fedq.relay.jobs.execution import be
from fedq.relay.jobs.frames import Channel, pair
from fedq.relay.jobs.pages import collapse
from fedq.relay.jobs.processes import Child, adopt_orphans, fork, kill_orphans, poll

__all__ = ["Horse", "Stable"]

log = logging.getLogger("fedq.worker")

_RECORD = struct.Struct("!ci")
_START, _KILL, _ENDED, _FAILED = b"s", b"k", b"e", b"f"

OVERDUE = 2.0
"""Seconds that a stable gets to end a horse that is to be killed; then it is killed itself, and the horse with it."""
_SIGKILL = 9


class Horse:
    """A process forked by the stable for one job, seen from the worker. Has what :class:`~.processes.Child` has."""

    def __init__(self, stable: Stable) -> None:
        self._stable = stable
        self._overdue: float | None = None
        self.status: int | None = None
        """Its wait status, once it has ended. Of one whose stable has died: that of a process killed by SIGKILL."""

    @property
    def pidfd(self) -> int | None:
        """A descriptor that can be read when it has ended."""
        return self._stable.fileno()

    def ended(self) -> bool:
        """Whether it has ended, and whatever it left running has been killed.

        Raises:
            OSError: it could not be forked.
        """
        if self.status is None:
            try:
                self.status = self._stable.hear()
            except OSError:
                self.status = 0
                raise
        return self.status is not None

    def kill(self) -> None:
        """Kill it, its group and its descendants."""
        if self.status is None:
            self._overdue = time.monotonic() + OVERDUE
            self._stable.tell(_KILL)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it has ended, at most ``timeout`` seconds; whether it has."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self.ended():
            moments = [moment for moment in (deadline, self._overdue) if moment is not None]
            left = max(0.0, min(moments) - time.monotonic()) if moments else None
            if left == 0.0 and self._overdue is not None and time.monotonic() >= self._overdue:
                self._stable.kill()
            elif left == 0.0:
                return False
            else:
                poll([self._stable.fileno()], left)
        return True

    def patience(self, left: float | None) -> float | None:
        """How long one may wait for :attr:`pidfd`: ``left``."""
        return left


class Stable:
    """The worker's hold on its stable.

    Args:
        forget: called in the stable: lets go of what belongs to the worker.
        prepare: loads in the stable what horses need; each step takes some milliseconds.
        work: what a horse does, with its end of the channel.
    """

    def __init__(
        self, forget: Callable[[], None], prepare: Callable[[], Iterator[object]], work: Callable[[Channel], object]
    ) -> None:
        ours, theirs = socket.socketpair()
        child = fork()
        if child is None:

            def body() -> None:
                ours.close()
                forget()
                _keep(theirs, prepare, work)

            be(body)
        theirs.close()
        self._child = child
        self._control = ours
        self._heard = b""

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._child.pid

    def fileno(self) -> int:
        """The descriptor that can be read when it has something to say, or has died."""
        return self._control.fileno()

    @property
    def alive(self) -> bool:
        """Whether it is there."""
        return not self._child.ended()

    def start(self) -> tuple[Horse, Channel]:
        """Have a horse forked, which is under way when this returns; the channel to it."""
        ours, theirs = pair()
        with contextlib.suppress(OSError):  # dead: the horse has ended before it began
            socket.send_fds(self._control, [_RECORD.pack(_START, 0)], [theirs.fileno()])
        theirs.close()
        return Horse(self), ours

    def tell(self, what: bytes) -> None:
        """Send a record. Lost if it is dead."""
        with contextlib.suppress(OSError):
            self._control.sendall(_RECORD.pack(what, 0))

    def hear(self) -> int | None:
        """The wait status of the horse, if it has ended."""
        while len(self._heard) < _RECORD.size:
            try:
                piece = self._control.recv(_RECORD.size - len(self._heard), socket.MSG_DONTWAIT)
            except (BlockingIOError, InterruptedError):
                return None
            except OSError:
                piece = b""
            if not piece:
                self.kill()
                return _SIGKILL
            self._heard += piece
        kind, value = _RECORD.unpack(self._heard)
        self._heard = b""
        if kind == _FAILED:
            raise OSError(value, f"a process for the app could not be forked: {os.strerror(value)}")
        return int(value)

    def kill(self) -> None:
        """Kill it with all that descends from it."""
        self._child.kill()
        self._child.wait(10.0)

    def forget(self) -> None:
        """In a forked child: close the descriptor."""
        self._control.close()

    def close(self) -> None:
        """End it, and the horse if there is one."""
        self._control.close()
        if not self._child.wait(2.0):
            self.kill()


def _keep(control: socket.socket, prepare: Callable[[], Iterator[object]], work: Callable[[Channel], object]) -> None:
    """Be the stable until the worker closes its end."""
    adopt_orphans()
    # What was collected here would be copied.
    gc.disable()
    gc.freeze()
    horse: Child | None = None
    horses = 0
    steps: Iterator[object] | None = None
    while True:
        fds = [control.fileno()]
        if horse is not None and horse.pidfd is not None:
            fds.append(horse.pidfd)
        patience = horse.patience(None) if horse is not None else None
        ready = poll(fds, patience if steps is None else 0.0)
        if not ready and steps is not None:
            try:
                next(steps)
            except StopIteration:
                steps = None
        if horse is not None and horse.ended():
            kill_orphans(())
            _say(control, _ENDED, horse.status or 0)
            horse = None
        if control.fileno() not in ready:
            continue
        record, ends, _, _ = socket.recv_fds(control, _RECORD.size, 1)
        if len(record) < _RECORD.size:  # the worker is done with us, or gone
            if horse is not None:
                horse.kill()
                horse.wait(10.0)
                kill_orphans(())
            return
        if record[:1] == _START:
            horse = _start(control, ends[0], work)
            horses += horse is not None
            if horses == 2 and horse is not None:
                steps = _prepared(prepare)
        elif horse is not None:
            horse.kill()


def _prepared(prepare: Callable[[], Iterator[object]]) -> Iterator[object]:
    try:
        yield from prepare()
    except Exception:
        log.exception("each process for an app has to load by itself what it needs")
    gc.collect()
    gc.freeze()
    yield from collapse()


def _start(control: socket.socket, end: int, work: Callable[[Channel], object]) -> Child | None:
    channel = Channel(socket.socket(fileno=end))
    try:
        horse = fork(plain=True)
    except OSError as error:
        channel.close()
        _say(control, _FAILED, error.errno or 0)
        return None
    if horse is None:
        control.close()
        gc.enable()
        be(lambda: work(channel), channel)
    channel.close()
    return horse


def _say(control: socket.socket, kind: bytes, value: int) -> None:
    with contextlib.suppress(OSError):
        control.sendall(_RECORD.pack(kind, value))
