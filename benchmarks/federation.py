"""A federation to be measured: the demo's own, with a ServerApp that waits for what it is told."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, BinaryIO, Self

import redis

from benchmarks.counters import Server, cpu_seconds
from benchmarks.launch import tail
from fedq.cli.federation import LocalFederation
from fedq.relay import Run, RunResult, SuperLink

ANSWER = 1800.0
"""Seconds that the ServerApp may take for one thing."""


class Federation:
    """A private server, a SuperLink and ``nodes`` SuperNodes, each a process of its own, and a run that is steered.

    Everything is as ``fedq demo`` starts it: append-only file, unix socket, one slot per node. Ends with the block.
    """

    def __init__(self, nodes: int, isolation: str) -> None:
        self.isolation = isolation
        self._stack = ExitStack()
        self.folder = Path(self._stack.enter_context(TemporaryDirectory(prefix="fedq-bench-")))
        self._local = LocalFederation(nodes=nodes, directory=self.folder / "federation", isolation=isolation)
        self.run: Run | None = None
        self._pipe: BinaryIO | None = None

    def __enter__(self) -> Self:
        try:
            self._stack.enter_context(self._local)
            for _ in self._local.wait_until_online():
                pass
            self.link = self._stack.enter_context(SuperLink.connect(self.url))
            self.client = self._stack.enter_context(redis.Redis.from_url(self.url))
            self.server = Server(self.client)
            self.server_pid = self.server.pid
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pipe is not None:
            self._pipe.close()
        self._stack.close()

    # -- what it is ----------------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """The server's address."""
        return self._local.url

    @property
    def nodes(self) -> list[str]:
        """The nodes' names."""
        return self._local.node_names

    @property
    def services(self) -> dict[str, int]:
        """Process ids of the SuperLink and of the SuperNodes, by name."""
        return {service.name: service.process.pid for service in self._local.services}

    @property
    def pids(self) -> list[int]:
        """The processes of which everything else descends: services and server."""
        return [*self.services.values(), self.server_pid]

    def cpu_seconds(self) -> float:
        """Processor seconds of the whole federation so far."""
        return cpu_seconds(self.pids)

    # -- the steered run -----------------------------------------------------------------------------------------------

    def submit(self) -> dict[str, Any]:
        """Submit the run and wait until its ServerApp is there; what it says of itself."""
        from benchmarks.app import client_app, server_app

        path = self.folder / "app.sock"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen(1)
            listener.settimeout(60.0)
            self.run = self.link.submit(server_app, client_app, config={"socket": str(path)}, name="benchmark")
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                info = self.run.info()
                log = tail(self.folder / "federation" / "superlink.log")
                raise RuntimeError(f"the ServerApp did not start ({info.status}, {info.detail}):\n{log}") from None
        path.unlink()
        with connection:
            connection.settimeout(ANSWER)
            self._pipe = connection.makefile("rwb")  # type: ignore[assignment]
        return self.ask({"do": "hello"})

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Let the ServerApp do something; its answer."""
        assert self._pipe is not None, "no run was submitted"
        self._pipe.write(json.dumps(request).encode() + b"\n")
        self._pipe.flush()
        line = self._pipe.readline()
        if not line:
            assert self.run is not None
            self.run.result(timeout=60)  # raises, with the ServerApp's traceback
            raise RuntimeError("the ServerApp has ended by itself")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def rounds(self, count: int, nbytes: int, **more: Any) -> dict[str, Any]:
        """Let it do so many rounds on all nodes, back to back."""
        return self.ask({"do": "rounds", "rounds": count, "bytes": nbytes, "nodes": self.nodes, **more})

    def finish(self) -> RunResult:
        """Let the ServerApp end, and wait for the end of the run."""
        assert self._pipe is not None
        assert self.run is not None
        self._pipe.close()
        self._pipe = None
        return self.run.result(timeout=120)
