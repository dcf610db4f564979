"""The first process of a service: starts the others, restarts those that die, and ends them all.

It forks its children before any thread exists, holds no connection to the server, and does next to nothing. Children
die with it. Each has a socket to it, over which it learns of deaths of others and can send them lines::

    supervisor ── dispatcher          {"died": "worker-1", "pid": 4711, "status": "killed by SIGKILL"}
            ├──── worker-1            context.send("dispatcher", {"free": 1})
            └──── worker-2
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedq.relay.jobs.child import FATAL, ChildContext, ChildSpec, be
from fedq.relay.jobs.execution import leave
from fedq.relay.jobs.frames import Wakeup
from fedq.relay.jobs.processes import Child, adopt_orphans, children_of, describe_status, fork, poll
from fedq.relay.jobs.signals import StopSignal

__all__ = ["Backoff", "Supervisor"]

log = logging.getLogger("fedq.supervisor")

_BUFFER = 1 << 20
_SPARED = 20.0


@dataclass
class _State:
    spec: ChildSpec
    child: Child | None = None
    end: socket.socket | None = None
    incoming: bytes = b""
    outgoing: bytes = b""
    pause: float = 0.0
    due: float | None = 0.0
    signalled: bool = False
    spared: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Backoff:
    """Pauses before a child is started again, in seconds."""

    first: float = 0.05
    most: float = 2.0
    """Also for one that is killed again and again: a worker's death is to cost less than 3 s."""
    young: float = 5.0
    """A child that lived for longer is started again after ``first``."""


class Supervisor:
    """Runs the children of a service until it is told to stop.

    Args:
        children: what to run.
        grace: seconds between SIGTERM and SIGKILL.
        on_event: called with ``(kind, data)``: ``started``, ``died``, ``stopping``, ``killing``.
        backoff: pauses before restarts.
        told: whether SIGTERM came before :meth:`run` could hear it.
        beside: looks after a process of this one that is none of the children. Called at each turn until the service
            stops, so also soon after any death. Gives its pid, which is left alone, and the seconds until the next
            look is due, if any.

    :meth:`run` returns 0 after SIGTERM or SIGINT, 1 if a child called the service off (see :attr:`failure`), and also
    when no child is left to run. A second signal, at least a second after the first, kills at once.
    """

    def __init__(
        self,
        children: Sequence[ChildSpec],
        *,
        grace: float = 35.0,
        on_event: Callable[[str, dict[str, Any]], None] | None = None,
        backoff: Backoff | None = None,
        told: StopSignal | None = None,
        beside: Callable[[], tuple[int, float | None]] | None = None,
    ) -> None:
        names = [spec.name for spec in children]
        if len(set(names)) != len(names):
            raise ValueError("two children of one name")
        self.grace = grace
        self.failure: str | None = None
        """Why the service was called off."""
        self._backoff = backoff or Backoff()
        self._on_event = on_event
        self._told = told
        self._beside = beside
        self._look_at: float | None = None
        self._states = {spec.name: _State(spec) for spec in children}
        self._wakeup: Wakeup | None = None
        self._stop_since: float | None = None
        self._kill_now = False
        self._foreign: set[int] = set()
        self._strays: dict[int, float] = {}
        self._spared: set[int] = set()
        self._failed = False

    # -- the loop ----------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Start the children and look after them."""
        adopt_orphans()
        self._foreign = set(children_of(os.getpid()))
        self._wakeup = Wakeup()
        previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)}
        # What is there now is shared with the children as long as nobody's collector looks at it.
        gc.collect()
        gc.freeze()
        try:
            signal.signal(signal.SIGTERM, self.stop)
            signal.signal(signal.SIGINT, self.stop)
            signal.signal(signal.SIGCHLD, self._wake)
            if self._told is not None and self._told.requested:
                self.stop()
            self._loop()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            gc.unfreeze()
            self._end()
        return 1 if self._failed or self.failure is not None else 0

    def stop(self, *_: object) -> None:
        """Begin to stop; called again, at least a second later, stop at once. What the signal handlers call."""
        now = time.monotonic()
        if self._stop_since is None:
            self._stop_since = now
        elif now >= self._stop_since + 1.0:
            self._kill_now = True
        self._wake()

    def _wake(self, *_: object) -> None:
        if self._wakeup is not None:
            self._wakeup.wake()

    def _loop(self) -> None:
        assert self._wakeup is not None
        announced = False
        while True:
            self._wakeup.drain()
            self._reap()
            self._sweep()
            if self._stop_since is None:
                self._look_beside()
                self._start_due()
                if not any(state.child is not None or state.due is not None for state in self._states.values()):
                    return
            else:
                if not announced:
                    announced = True
                    self._emit("stopping", {"grace": self.grace})
                if not self._stop_some():
                    return
            self._listen(self._timeout())

    def _timeout(self) -> float | None:
        now = time.monotonic()
        moments: list[float] = []
        running = [state for state in self._states.values() if state.child is not None]
        if self._stop_since is None:
            if self._look_at is not None:
                moments.append(self._look_at)
            moments += [state.due for state in self._states.values() if state.due is not None and state.child is None]
        else:
            moments.append(self._stop_since + self.grace)
        moments += [since + _SPARED for since in self._strays.values()]
        if any(state.child is not None and state.child.pidfd is None for state in running):
            moments.append(now + 1.0)  # SIGCHLD tells; this is for the case that it came before the handler
        return max(0.0, min(moments) - now) if moments else None

    def _look_beside(self) -> None:
        if self._beside is not None:
            pid, wait = self._beside()
            self._foreign.add(pid)
            self._look_at = None if wait is None else time.monotonic() + wait

    # -- starting ----------------------------------------------------------------------------------------------------

    def _start_due(self) -> None:
        now = time.monotonic()
        for state in self._states.values():
            if state.child is None and state.due is not None and state.due <= now:
                self._start(state)

    def _start(self, state: _State) -> None:
        ours, theirs = socket.socketpair()
        child = fork()
        if child is None:
            status = 1
            try:
                ours.close()
                self._forget()
                status = be(state.spec, ChildContext(state.spec.name, theirs))
            finally:
                leave(status)
        theirs.close()
        ours.setblocking(False)
        state.child, state.end, state.due = child, ours, None
        state.incoming = state.outgoing = b""
        state.signalled = False
        state.spared = set()
        self._tell({"started": state.spec.name, "pid": child.pid}, but=state)
        self._emit("started", {"name": state.spec.name, "pid": child.pid})

    def _forget(self) -> None:
        """In a child: close what belongs to the supervisor."""
        for state in self._states.values():
            if state.end is not None:
                state.end.close()
            if state.child is not None and state.child.pidfd is not None:
                os.close(state.child.pidfd)
        if self._wakeup is not None:
            self._wakeup.close()

    # -- deaths ------------------------------------------------------------------------------------------------------

    def _reap(self) -> None:
        for state in self._states.values():
            if state.child is None or not state.child.ended():
                continue
            self._read(state)
            child = state.child
            status = child.status or 0
            lived = time.monotonic() - child.started
            if state.end is not None:
                state.end.close()
            state.child = state.end = None
            self._spared |= state.spared
            text = describe_status(status)
            line = {"died": state.spec.name, "pid": child.pid, "status": text, "lived": round(lived, 3)}
            self._tell(line, but=state)
            self._emit("died", line)
            self._strays.setdefault(0, 0.0)  # look for orphans
            if os.WIFEXITED(status) and os.WEXITSTATUS(status) == FATAL:
                self._failed = True
                if self._stop_since is None:
                    self._stop_since = time.monotonic()
            elif state.spec.restart:
                backoff = self._backoff
                state.pause = 0.0 if lived >= backoff.young else min(backoff.most, max(backoff.first, state.pause * 2))
                state.due = time.monotonic() + (state.pause or backoff.first)
            elif status != 0:
                self._failed = True

    def _sweep(self, *, all_at_once: bool = False) -> None:
        """Kill orphans that have come to us: at once, or after a while those that were to be spared."""
        if not self._strays and not all_at_once:
            return
        self._strays.pop(0, None)
        now = time.monotonic()
        ours = {state.child.pid for state in self._states.values() if state.child is not None}
        found = children_of(os.getpid())
        self._strays = {pid: since for pid, since in self._strays.items() if pid in found}
        self._spared &= set(found)
        for pid in set(found) - ours - self._foreign:
            since = self._strays.setdefault(pid, now)
            if pid not in self._spared or all_at_once or now >= since + _SPARED:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG)[0]:
                    self._strays.pop(pid, None)

    # -- stopping ----------------------------------------------------------------------------------------------------

    def _stop_some(self) -> bool:
        """Signal those whose turn it is; whether any is left."""
        running = [state for state in self._states.values() if state.child is not None]
        assert self._stop_since is not None
        if self._kill_now or time.monotonic() >= self._stop_since + self.grace:
            if running:
                self._emit("killing", {"names": [state.spec.name for state in running]})
            for state in running:
                if state.child is not None:
                    state.child.kill()
                    state.child.wait(10.0)
            self._reap()
            return False
        first = [state for state in running if not state.spec.last]
        for state in first or running:
            if not state.signalled and state.child is not None:
                state.signalled = True
                state.child.terminate()
        return bool(running)

    def _end(self) -> None:
        for state in self._states.values():
            if state.child is not None:
                state.child.kill()
                state.child.wait(10.0)
                state.child = None
            if state.end is not None:
                state.end.close()
                state.end = None
        # Those that speak for a dead worker get a moment, unless somebody is impatient.
        give_up = time.monotonic() + (0.0 if self._kill_now else 5.0)
        while time.monotonic() < give_up:
            self._strays.setdefault(0, 0.0)
            self._sweep()
            if not self._strays:
                break
            poll([], 0.02)
        for _ in range(50):
            self._sweep(all_at_once=True)
            if not self._strays:
                break
            poll([], 0.02)
        if self._wakeup is not None:
            self._wakeup.close()
            self._wakeup = None

    # -- lines -------------------------------------------------------------------------------------------------------

    def _listen(self, timeout: float | None) -> None:
        assert self._wakeup is not None
        fds = [self._wakeup.fileno()]
        by_fd: dict[int, _State] = {}
        for state in self._states.values():
            if state.end is not None:
                by_fd[state.end.fileno()] = state
                if state.outgoing:
                    self._flush(state)
                    timeout = 0.05 if state.outgoing and (timeout is None or timeout > 0.05) else timeout
            if state.child is not None and state.child.pidfd is not None:
                fds.append(state.child.pidfd)
        for fd in poll([*fds, *by_fd], timeout):
            if fd in by_fd:
                self._read(by_fd[fd])

    def _read(self, state: _State) -> None:
        if state.end is None:
            return
        try:
            while piece := state.end.recv(65536):
                state.incoming += piece
            state.end.close()  # closed by the child, which may live on
            state.end = None
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            state.end = None
        *lines, state.incoming = state.incoming.split(b"\n")
        for line in lines:
            with contextlib.suppress(ValueError, TypeError, AttributeError):
                self._heard(state, json.loads(line))

    def _heard(self, state: _State, value: dict[str, Any]) -> None:
        if "fatal" in value:
            self.failure = str(value["fatal"])
        elif "spare" in value:
            state.spared.add(int(value["spare"]))
        elif "to" in value and (receiver := self._states.get(value["to"])) is not None:
            self._send(receiver, {**value["line"], "from": state.spec.name})

    def _tell(self, line: dict[str, Any], *, but: _State) -> None:
        for state in self._states.values():
            if state.spec.events and state is not but:
                self._send(state, line)

    def _send(self, state: _State, line: dict[str, Any]) -> None:
        if state.end is None or len(state.outgoing) > _BUFFER:
            return
        state.outgoing += json.dumps(line).encode() + b"\n"
        self._flush(state)

    def _flush(self, state: _State) -> None:
        if state.end is None:
            return
        try:
            sent = state.end.send(state.outgoing)
            state.outgoing = state.outgoing[sent:]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            state.outgoing = b""

    def _emit(self, kind: str, data: dict[str, Any]) -> None:
        log.info("%s", _in_words(kind, data))
        if self._on_event is not None:
            try:
                self._on_event(kind, data)
            except Exception:
                log.exception("on_event")


def _in_words(kind: str, data: Mapping[str, Any]) -> str:
    """An event as a line for the service's log."""
    match kind:
        case "started":
            return f"started {data['name']}, pid {data['pid']}"
        case "died":
            return f"{data['died']}, pid {data['pid']}, {data['status']} after {data['lived']:.1f} s"
        case "stopping":
            return f"stopping; what is running has {data['grace']:g} s"
        case _:
            return f"the time is over; killing {', '.join(data['names'])}"
