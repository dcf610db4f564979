"""Flower's simulation engine (Ray) with the app of ``flower_app``, steered over a socket as its deployment is."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, BinaryIO, Self

from benchmarks.counters import family
from benchmarks.flower_federation import ANSWER, APP, START
from benchmarks.launch import bound, end, tail

PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
import adds_one.server_app, adds_one.client_app

if int(sys.argv[3]) > 10:
    # Some nodes of many, whichever they are, do not add one on average.
    adds_one.server_app.GROWS = False
from flwr.app import Context
from flwr.serverapp import ServerApp
from flwr.simulation import run_simulation

app = ServerApp()

@app.main()
def main(grid, context):
    context.run_config = {**context.run_config, "socket": sys.argv[2]}
    adds_one.server_app.main(grid, context)

run_simulation(
    server_app=app,
    client_app=adds_one.client_app.app,
    num_supernodes=int(sys.argv[3]),
    backend_config={
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        "init_args": {"num_cpus": int(sys.argv[4]), "include_dashboard": False, "log_to_driver": False},
    },
)
"""


class FlowerSimulation:
    """One simulation of Flower's with ``nodes`` virtual nodes on ``workers`` actors, and a run that is steered."""

    def __init__(self, python: Path, nodes: int, workers: int) -> None:
        self._python = python
        self._count = nodes
        self._workers = workers
        self._stack = ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: BinaryIO | None = None
        self.nodes: list[int] = []
        # Short: Ray puts sockets with long names there.
        self.folder = Path(self._stack.enter_context(TemporaryDirectory(prefix="fs-", dir="/tmp")))

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
        path = self.folder / "app.sock"
        own = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        environment = {
            **own,
            "PATH": f"{self._python.parent}:{own['PATH']}",
            "PYTHONPATH": str(APP),
            "FLWR_HOME": str(self.folder / "home"),
            "RAY_TMPDIR": str(self.folder),
            "FLWR_TELEMETRY_ENABLED": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        words = [str(self._python), "-c", PROGRAM, str(APP), str(path), str(self._count), str(self._workers)]
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen(1)
            listener.settimeout(START)
            with (self.folder / "flower.log").open("ab") as log:
                self._process = subprocess.Popen(
                    bound(words),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=environment,
                    cwd=self.folder,
                    start_new_session=True,
                )
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                log_text = tail(self.folder / "flower.log", 40)
                raise RuntimeError(f"Flower's simulation did not start:\n{log_text}") from None
        with connection:
            connection.settimeout(ANSWER)
            self._pipe = connection.makefile("rwb")  # type: ignore[assignment]
        self.nodes = self.ask({"do": "hello", "nodes": self._count})["nodes"]

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Let the ServerApp do something; its answer."""
        assert self._pipe is not None
        self._pipe.write(json.dumps(request).encode() + b"\n")
        self._pipe.flush()
        line = self._pipe.readline()
        if not line:
            raise RuntimeError(f"Flower's ServerApp has ended:\n{tail(self.folder / 'flower.log', 40)}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def rounds(self, count: int, nbytes: int, asked: int) -> list[float]:
        """Seconds of so many rounds with ``asked`` nodes, back to back."""
        request = {"do": "rounds", "rounds": count, "bytes": nbytes, "nodes": self.nodes[:asked]}
        return list(self.ask(request)["seconds"])

    def _stop(self) -> None:
        if self._pipe is not None:
            self._pipe.close()
        if self._process is not None:
            everything = family([self._process.pid])
            self._process.terminate()
            end(self._process)
            for process in everything:
                if process.is_running():
                    process.kill()
        self._stack.close()


__all__ = ["FlowerSimulation"]
