"""Which machine, as far as process ids are concerned, and whether a process of it still lives."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
from functools import cache
from pathlib import Path


@cache
def host_id() -> str:
    """A name for this machine, boot and process-id namespace.

    Two processes with the same answer can tell by a process id whether the other one lives. Containers that share a
    host name do not share this.
    """
    marks = []
    with contextlib.suppress(OSError):
        marks.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with contextlib.suppress(OSError):
        marks.append(os.readlink("/proc/self/ns/pid"))
    name = "".join(c if c.isalnum() or c in "-." else "-" for c in socket.gethostname()) or "host"
    if not marks:
        return name
    return f"{name}/{hashlib.sha256('/'.join(marks).encode()).hexdigest()[:8]}"


def process_name(pid: int | None = None) -> str:
    """``<host>:<pid>``, by which a claim names the worker that holds it."""
    return f"{host_id()}:{os.getpid() if pid is None else pid}"


def known_dead(host: str, pid: int) -> bool:
    """Whether the process has certainly ended: it was on this host, and nothing of that id runs now."""
    if host != host_id() or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    # A zombie does nothing any more, though nobody may have asked for its status yet.
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] in ("Z", "X")
    return False


def worker_known_dead(worker: str) -> bool:
    """The same for a name made by :func:`process_name`."""
    host, _, pid = worker.rpartition(":")
    return pid.isdigit() and known_dead(host, int(pid))
