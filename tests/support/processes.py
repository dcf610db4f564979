"""Finding the processes that a test started and did not end.

A process whose parent died is nobody's child any more; it is found by the mark that this test session puts into its
environment, or, where it was forked from the session without a new program, by its having the session's command line.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable

import psutil

MARK = "FEDQ_TEST_SESSION"


def gone(pid: int) -> bool:
    """Whether process ``pid`` has ended. One that ended and was not waited for yet has ended."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def parents() -> dict[int, int]:
    """Each living process of this machine and its parent."""
    found: dict[int, int] = {}
    if not os.path.isdir("/proc/self"):
        for process in psutil.process_iter(["ppid", "status"]):
            if process.info["status"] != psutil.STATUS_ZOMBIE:
                found[process.pid] = process.info["ppid"]
        return found
    for name in os.listdir("/proc"):
        if name.isdigit():
            # "4711 (name) S 1 …": reading one small file for each is what keeps a check after every test cheap.
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                state, parent = file.read().rpartition(b")")[2].split(None, 2)[:2]
                if state != b"Z":
                    found[int(name)] = int(parent)
    return found


def descendants(pid: int | None = None, tree: dict[int, int] | None = None) -> list[psutil.Process]:
    """The living children of ``pid`` (default: this process), theirs, and so on."""
    tree = parents() if tree is None else tree
    family = {os.getpid() if pid is None else pid}
    while more := {child for child, parent in tree.items() if parent in family} - family:
        family |= more
    return _processes(family - {os.getpid() if pid is None else pid})


def orphans(mark: str, tree: dict[int, int] | None = None) -> list[psutil.Process]:
    """Living processes of the session ``mark`` that have lost their parent."""
    tree = parents() if tree is None else tree
    me = os.getpid()
    adopters = {parent for parent in set(tree.values()) if parent == 1 or _adopts(parent)} - {me}
    lone = _processes({pid for pid, parent in tree.items() if parent in adopters} - {me})
    if not lone:
        return []
    own = psutil.Process()
    own_command, own_start, starter = own.cmdline(), own.create_time(), own.ppid()
    found = []
    for process in lone:
        with contextlib.suppress(psutil.Error, OSError):
            marked = process.environ().get(MARK) == mark
            forked = process.cmdline() == own_command and process.create_time() > own_start
            if marked or (forked and process.pid != starter):
                found.append(process)
    return found


def stray_processes(mark: str, known: Iterable[int] = ()) -> list[psutil.Process]:
    """Descendants and orphans of this session that are not in ``known``.

    What those have started is their own affair: a service that outlives one test may fork what it keeps for the next.
    """
    tree = parents()
    expected = {pid for pid in known if pid != os.getpid()}
    while more := {child for child, parent in tree.items() if parent in expected} - expected:
        expected |= more
    return [process for process in [*descendants(tree=tree), *orphans(mark, tree)] if process.pid not in expected]


def _processes(pids: Iterable[int]) -> list[psutil.Process]:
    found = []
    for pid in sorted(pids):
        with contextlib.suppress(psutil.Error):
            found.append(psutil.Process(pid))
    return found


def described(process: psutil.Process) -> str:
    """One line for people."""
    try:
        return f"{process.pid} (parent {process.ppid()}): {' '.join(process.cmdline())[:200]}"
    except psutil.Error:
        return f"{process.pid}: gone meanwhile"


def end(processes: Iterable[psutil.Process]) -> None:
    """Kill each of them, so that one test's leak is not the next one's."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()


def _adopts(pid: int) -> bool:
    """Whether ``pid`` is a subreaper such as a user's systemd, to which orphans go instead of to process 1."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/comm") as file:
        return file.read().strip() in {"systemd", "init", "tini", "dumb-init"}
    return False


def set_mark(mark: str) -> None:
    """Mark every process that this one starts from now on."""
    os.environ[MARK] = mark
