"""A whole federation on this machine, for as long as a ``with`` block: server, SuperLink, SuperNodes.

Each service is a process of its own, started by the same commands that an operator uses, and ends with this process
however that ends. Nothing of it touches another federation: the server is private, on a unix socket.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from fedq.cli.problem import Problem
from fedq.relay.connection import Relay
from fedq.relay.embedded import EmbeddedServer
from fedq.relay.nodes import node_names, online

START_TIMEOUT = 60.0
"""Seconds that the services may take until all nodes are online."""

GRACE = 5.0
"""Seconds that a service may take to end before it is killed."""


@dataclass(slots=True)
class Service:
    """One started command."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path


@dataclass(slots=True)
class LocalFederation:
    """A private server, one SuperLink and ``nodes`` SuperNodes, named and numbered as in ``fedq.apps.testing``.

    Args:
        nodes: how many SuperNodes; ``node-3`` has ``partition-id=3`` and ``num-partitions`` in its config.
        directory: keeps the server's data and the services' logs; None: a temporary one that goes with the federation.
        isolation: how the nodes isolate ClientApps: ``fork``, ``run`` or ``inline``.
        slots: ClientApps at a time and node.
        runs: ServerApps at a time.
    """

    nodes: int = 6
    directory: Path | None = None
    isolation: str = "fork"
    slots: int = 1
    runs: int = 2
    services: list[Service] = field(default_factory=list)
    _server: EmbeddedServer | None = None
    _stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def url(self) -> str:
        """The server's address."""
        if self._server is None:
            raise Problem("the federation is not started")
        return self._server.url

    @property
    def server(self) -> str:
        """What the server is, for people."""
        return str(self._server.program) if self._server is not None else ""

    @property
    def node_names(self) -> list[str]:
        """The nodes' names; they sort by number."""
        width = len(str(self.nodes - 1))
        return [f"node-{number:0{width}d}" for number in range(self.nodes)]

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _start(self) -> None:
        if self.directory is None:
            self.directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="fedq-demo-")))
        self.directory.mkdir(parents=True, exist_ok=True)
        self._server = self._stack.enter_context(EmbeddedServer(self.directory / "server"))
        cache = self.directory / "cache"
        self.launch(
            "superlink",
            ["superlink", "--runs", str(self.runs), "--grace", "2", "--cache-dir", str(cache / "superlink")],
        )
        for number, name in enumerate(self.node_names):
            self.launch(
                name,
                [
                    *("supernode", "--name", name, "--slots", str(self.slots), "--isolation", self.isolation),
                    *("--config", f"partition-id={number}", "--config", f"num-partitions={self.nodes}"),
                    *("--label", f"partition={number}", "--grace", "2"),
                    *("--cache-dir", str(cache / name)),
                ],
            )

    def launch(self, name: str, words: Sequence[str]) -> Service:
        """Start one ``fedq`` command as a service of this federation."""
        assert self.directory is not None
        path = self.directory / f"{name}.log"
        with path.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "fedq.cli.attached", str(os.getpid()), *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # A Ctrl-C in the terminal is for the demo, which ends its services in order.
                start_new_session=True,
                env={**_neutral_environment(), "FEDQ_REDIS_URL": self.url},
            )
        service = Service(name, process, path)
        self.services.append(service)
        return service

    def check(self) -> None:
        """Raise Problem, with its last words, when a service has ended by itself."""
        for service in self.services:
            if service.process.poll() is not None:
                raise Problem(
                    f"{service.name} ended by itself (exit code {service.process.returncode}): "
                    f"{last_words(service.log)}; its log was {service.log}"
                )

    def wait_until_online(self, timeout: float = START_TIMEOUT) -> Iterator[int]:
        """Yield the number of nodes online whenever it grew, until all are. Raises Problem after ``timeout``."""
        give_up, seen = time.monotonic() + timeout, 0
        names = set(self.node_names)
        with Relay.connect(self.url, client_name="fedq-demo") as relay:
            while seen < self.nodes:
                self.check()
                count = sum(online(relay, [name for name in node_names(relay) if name in names]).values())
                if count > seen:
                    seen = count
                    yield seen
                elif time.monotonic() > give_up:
                    raise Problem(f"only {seen} of {self.nodes} nodes came online within {timeout:.0f} s")
                else:
                    time.sleep(0.05)

    def _stop(self) -> None:
        # Nodes first: what they still say reaches a SuperLink and a server that are there.
        for service in reversed(self.services):
            with contextlib.suppress(ProcessLookupError):
                service.process.send_signal(signal.SIGTERM)
        give_up = time.monotonic() + GRACE
        for service in reversed(self.services):
            try:
                service.process.wait(max(0.0, give_up - time.monotonic()))
            except subprocess.TimeoutExpired:
                # Its own children are bound to its life.
                service.process.kill()
                service.process.wait()
        self.services.clear()
        self._stack.close()


def _neutral_environment() -> dict[str, str]:
    """The environment without what an operator has set for services of another federation."""
    foreign = ("FEDQ_SUPERLINK_", "FEDQ_SUPERNODE_", "REDIS_URL")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)}


def last_words(log: Path, lines: int = 3) -> str:
    """The last lines of a log, on one line."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return "it left no log"
    return " | ".join(text.splitlines()[-lines:]) or "it said nothing"
