"""Forked processes: they die with their parent, are killed as a whole, and are waited for without polling.

Each child gets a process group of its own, so that what it starts can be killed with it. On Linux the kernel kills a
child whose parent has died (PR_SET_PDEATHSIG); elsewhere a thread of the child watches for it.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import sys
import threading
import time
from collections.abc import Iterable

from fedq.relay.jobs.libc import function

__all__ = [
    "Child",
    "adopt_orphans",
    "children_of",
    "descendants_of",
    "describe_status",
    "die_with_parent",
    "fork",
    "kill_orphans",
    "poll",
    "reap_orphans",
    "reset_signals",
]

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


# Looked up once: every forked process needs it, and soon.
_PRCTL = function("prctl")


def _prctl(option: int, value: int) -> bool:
    return _PRCTL is not None and _PRCTL(option, value, 0, 0, 0) == 0


def die_with_parent(parent: int) -> None:
    """See to it that this process is killed when ``parent``, which has just forked it, ends.

    Exits at once if the parent is gone already.
    """
    kernel = _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    if not kernel:
        threading.Thread(target=_watch_parent, args=(parent,), name="parent-watch", daemon=True).start()


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.25)
    os.kill(os.getpid(), signal.SIGKILL)


def adopt_orphans() -> bool:
    """Become the parent of descendants whose own parent dies (Linux); False where that does not exist."""
    return _prctl(_PR_SET_CHILD_SUBREAPER, 1)


_TOLD_TO_END = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def reset_signals() -> None:
    """Undo in a forked child what its parent had set up for itself."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGALRM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


class Child:
    """A forked process, seen from its parent."""

    __slots__ = ("pid", "pidfd", "started", "status")

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.started = time.monotonic()
        self.status: int | None = None
        """Its wait status, once it has ended."""
        self.pidfd: int | None = None
        if hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):
                self.pidfd = os.pidfd_open(pid)

    def ended(self) -> bool:
        """Whether it has ended. Reaps it, after killing whatever is left of its group."""
        if self.status is not None:
            return True
        try:
            # Looked at without reaping: as long as it is a zombie its group's id cannot be somebody else's.
            if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                return False
            self._kill_group()
            _, self.status = os.waitpid(self.pid, 0)
        except ChildProcessError:  # reaped by somebody else, whose business it was not
            self.status = 0
        if self.pidfd is not None:
            os.close(self.pidfd)
            self.pidfd = None
        return True

    def kill(self) -> None:
        """Kill it, its group and its descendants."""
        if self.status is None:
            family = descendants_of(self.pid)
            self._kill_group()
            for pid in (self.pid, *family):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)

    def terminate(self) -> None:
        """Ask it to end."""
        if self.status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it has ended, at most ``timeout`` seconds; whether it has."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self.ended():
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            poll([] if self.pidfd is None else [self.pidfd], self.patience(left))
        return True

    def patience(self, left: float | None, step: float = 0.02) -> float | None:
        """``left``, or a short step where nothing but looking tells that the process has ended."""
        if self.pidfd is not None:
            return left
        return step if left is None else min(step, left)

    def _kill_group(self) -> None:
        # EPERM: a group of zombies on macOS; ESRCH: the child has not come to make its group yet.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)


def fork(*, outlives_parent: bool = False, plain: bool = False) -> Child | None:
    """Fork. In the parent, the child; in the child, None.

    The child has a process group of its own, default signal handling, /dev/null as its standard input and random
    numbers unlike its parent's. It dies with its parent, unless it ``outlives_parent``, which it then has to watch.
    A parent that was forked so itself, and has left signals and standard input as they were, says that it is ``plain``.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    # A signal to the child waits until the child has its own handling: the parent's handlers would swallow it.
    before = None if plain else signal.pthread_sigmask(signal.SIG_BLOCK, _TOLD_TO_END)
    pid = 0
    try:
        pid = os.fork()
    finally:
        if before is not None and (pid or os.getpid() == parent):
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if pid:
        # Both sides set the group, so that it is there whoever comes first.
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)
        return Child(pid)
    try:
        with contextlib.suppress(OSError):
            os.setpgid(0, 0)
        if not plain:
            reset_signals()
        if not outlives_parent:
            die_with_parent(parent)
        if not plain:
            null = os.open(os.devnull, os.O_RDONLY)
            os.dup2(null, 0)
            os.close(null)
        random.seed()
        # Not by way of numpy itself, which would import its random numbers now.
        if (numpy_random := sys.modules.get("numpy.random")) is not None:
            numpy_random.seed()
    except BaseException:
        os._exit(1)
    return None


def poll(fds: Iterable[int], timeout: float | None) -> set[int]:
    """The descriptors that can be read (or have been closed at the other end) within ``timeout`` seconds."""
    poller = select.poll()
    for fd in fds:
        poller.register(fd, select.POLLIN)
    milliseconds = None if timeout is None else max(0, min(int(timeout * 1000 + 0.999), 86_400_000))
    return {fd for fd, _ in poller.poll(milliseconds)}


def describe_status(status: int) -> str:
    """A wait status in words."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            return f"killed by {signal.Signals(number).name}"
        except ValueError:
            return f"killed by signal {number}"
    return f"exited with status {os.waitstatus_to_exitcode(status)}"


# -- families --------------------------------------------------------------------------------------------------------


def _parents() -> dict[int, int]:
    """The parent of every process (Linux; empty elsewhere). Takes some 30 µs for each process of the machine."""
    found: dict[int, int] = {}
    try:
        entries = os.listdir("/proc")
    except OSError:
        return found
    for entry in entries:
        if not entry.isdigit():
            continue
        with contextlib.suppress(OSError, IndexError, ValueError):
            fd = os.open(f"/proc/{entry}/stat", os.O_RDONLY)
            try:
                data = os.read(fd, 1024)
            finally:
                os.close(fd)
            # pid (command) state ppid …; the command may hold anything, parentheses too
            found[int(entry)] = int(data.rpartition(b")")[2].split()[1])
    return found


def children_of(parent: int) -> set[int]:
    """The children of a process (Linux; nothing elsewhere)."""
    return {pid for pid, its_parent in _parents().items() if its_parent == parent}


def descendants_of(ancestor: int) -> set[int]:
    """Its children, theirs, and so on (Linux; nothing elsewhere)."""
    children: dict[int, list[int]] = {}
    for pid, parent in _parents().items():
        children.setdefault(parent, []).append(pid)
    found: set[int] = set()
    waiting = [ancestor]
    while waiting:
        for pid in children.get(waiting.pop(), ()):
            if pid not in found:
                found.add(pid)
                waiting.append(pid)
    return found


def kill_orphans(keep: Iterable[int]) -> int:
    """Kill and reap the children of this process that are not in ``keep``; how many.

    With :func:`adopt_orphans` those are descendants of a dead child that had left its group. Costs one system call if
    there are no children at all.
    """
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return 0
    keep = set(keep)
    killed = 0
    for _ in range(8):  # what is killed may leave orphans of its own
        strays = children_of(os.getpid()) - keep
        if not strays:
            break
        for pid in strays:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        for pid in strays:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
                killed += 1
    return killed


def reap_orphans(keep: Iterable[int]) -> None:
    """Reap children that have ended and are not in ``keep``, as far as one of those does not stand before them."""
    keep = set(keep)
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and ended.si_pid not in keep:
            os.waitpid(ended.si_pid, 0)
