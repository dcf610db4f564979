"""A federation of Flower's on loopback, in deployment mode: SuperLink and SuperNodes as processes of their own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import venv
from collections.abc import Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, BinaryIO, Self

from benchmarks.counters import cpu_seconds, family
from benchmarks.launch import bound, end, tail

VERSION = "1.42"
APP = Path(__file__).with_name("flower_app")

START = 180.0
"""Seconds until the ServerApp has seen all nodes."""
ANSWER = 3600.0


def flower_python(given: Path | None = None) -> Path:
    """A python with Flower: the given one, that of FLWR_PYTHON, or one in an environment which is made once."""
    if given is not None:
        return given.absolute()
    if named := os.environ.get("FLWR_PYTHON"):
        return Path(named)
    home = Path.home() / ".cache" / "fedq" / f"flwr-{VERSION}"
    python = home / "bin" / "python"
    if not (home / "ready").exists():
        venv.create(home, with_pip=True, clear=True)
        install = ["-m", "pip", "install", "--quiet", f"flwr[simulation]=={VERSION}.*", "numpy>=1.26"]
        subprocess.run([str(python), *install], check=True)
        (home / "ready").touch()
    return python


class FlowerFederation:
    """One SuperLink with its state in memory and ``nodes`` SuperNodes, and a run that is steered over a socket."""

    def __init__(self, python: Path, nodes: int) -> None:
        self._python = python
        self._count = nodes
        self._stack = ExitStack()
        self._services: list[subprocess.Popen[bytes]] = []
        self._pipe: BinaryIO | None = None
        self.nodes: list[int] = []
        self.folder = Path(self._stack.enter_context(TemporaryDirectory(prefix="fedq-flwr-")))

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

    @property
    def pids(self) -> list[int]:
        """The services; everything else descends from them."""
        return [service.pid for service in self._services]

    def cpu_seconds(self) -> float:
        """Processor seconds of the whole federation so far."""
        return cpu_seconds(self.pids)

    def submit(self) -> dict[str, Any]:
        """Start the run and wait until its ServerApp has seen every node."""
        path = self.folder / "app.sock"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen(1)
            listener.settimeout(START)
            done = subprocess.run(
                [str(self._python.with_name("flwr")), "run", str(APP), "bench", "--run-config", f'socket="{path}"'],
                env=self._environment(),
                cwd=self.folder,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode != 0:
                raise RuntimeError(f"flwr run failed: {done.stdout}{done.stderr}")
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                log = tail(self.folder / "superlink.log")
                raise RuntimeError(f"Flower's ServerApp did not start:\n{done.stdout}\n{log}") from None
        path.unlink()
        with connection:
            connection.settimeout(ANSWER)
            self._pipe = connection.makefile("rwb")  # type: ignore[assignment]
        hello = self.ask({"do": "hello", "nodes": self._count})
        self.nodes = hello["nodes"]
        return hello

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Let the ServerApp do something; its answer."""
        assert self._pipe is not None, "no run was submitted"
        self._pipe.write(json.dumps(request).encode() + b"\n")
        self._pipe.flush()
        line = self._pipe.readline()
        if not line:
            raise RuntimeError(f"Flower's ServerApp has ended:\n{tail(self.folder / 'superlink.log', 40)}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def rounds(self, count: int, nbytes: int) -> dict[str, Any]:
        """Let it do so many rounds on all nodes, back to back."""
        return self.ask({"do": "rounds", "rounds": count, "bytes": nbytes, "nodes": self.nodes})

    def close_run(self) -> None:
        """Let the ServerApp, and with it the run, end."""
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None

    # -- processes -----------------------------------------------------------------------------------------------------

    def _environment(self) -> dict[str, str]:
        own = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        # Its services start further commands of theirs by name.
        own["PATH"] = f"{self._python.parent}:{own['PATH']}"
        return {
            **own,
            "FLWR_HOME": str(self.folder / "home"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            # One thread in each process, as on fedq's nodes.
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }

    def _start(self) -> None:
        (self.folder / "home").mkdir()
        port = free_port()
        (self.folder / "home" / "config.toml").write_text(
            f'[superlink]\ndefault = "bench"\n\n[superlink.bench]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
        )
        self._launch(
            "superlink",
            ["flower-superlink", "--insecure", "--port", str(port), "--disable-runtime-dependency-installation"],
        )
        self._wait_for(port)
        for number in range(self._count):
            self._launch(
                f"supernode-{number}",
                [
                    *("flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{port}"),
                    *("--port", str(free_port())),
                    *("--node-config", f"partition-id={number} num-partitions={self._count}"),
                ],
            )

    def _launch(self, name: str, command: list[str]) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self._services.append(
                subprocess.Popen(
                    bound([str(self._python.with_name(command[0])), *command[1:]]),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=self._environment(),
                    cwd=self.folder,
                    start_new_session=True,
                )
            )

    def _wait_for(self, port: int) -> None:
        give_up = time.monotonic() + START
        while True:
            if self._services[0].poll() is not None:
                raise RuntimeError(f"Flower's SuperLink ended:\n{tail(self.folder / 'superlink.log')}")
            with closing(socket.socket()) as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return
            if time.monotonic() > give_up:
                raise RuntimeError("Flower's SuperLink does not listen")
            time.sleep(0.1)

    def _stop(self) -> None:
        self.close_run()
        # What they have started does not always end with them, and is looked up while it can be found.
        everything = family(self.pids)
        for service in reversed(self._services):
            service.terminate()
        for service in reversed(self._services):
            end(service)
        for process in everything:
            if process.is_running():
                process.kill()
        self._stack.close()


def free_port() -> int:
    """A port of loopback that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
