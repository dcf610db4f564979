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


def descendants(pid: int | None = None) -> list[psutil.Process]:
    """The living children of ``pid`` (default: this process), theirs, and so on."""
    try:
        found = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return [process for process in found if not gone(process.pid)]


def orphans(mark: str) -> list[psutil.Process]:
    """Living processes of the session ``mark`` that have lost their parent."""
    me = psutil.Process()
    own_command, own_start, adopter = _command(me.pid), me.create_time(), me.ppid()
    found = []
    for pid in psutil.pids():
        with contextlib.suppress(OSError, psutil.Error, ValueError):
            # "4711 (name) S 1 …": reading one small file for each is what keeps this quick.
            with open(f"/proc/{pid}/stat", "rb") as file:
                state, parent = file.read().rpartition(b")")[2].split()[:2]
            if state == b"Z" or pid == me.pid or (int(parent) != 1 and not _adopts(int(parent))):
                continue
            process = psutil.Process(pid)
            marked = f"{MARK}={mark}".encode() in _environment(pid)
            forked = pid != adopter and _command(pid) == own_command and process.create_time() > own_start
            if marked or forked:
                found.append(process)
    return found


def stray_processes(mark: str, known: Iterable[int] = ()) -> list[psutil.Process]:
    """Descendants and orphans of this session that are not in ``known``."""
    expected = set(known)
    return [process for process in [*descendants(), *orphans(mark)] if process.pid not in expected]


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


def _command(pid: int) -> bytes:
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read()


def _environment(pid: int) -> bytes:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read()
    except OSError:
        return b""


def set_mark(mark: str) -> None:
    """Mark every process that this one starts from now on."""
    os.environ[MARK] = mark
