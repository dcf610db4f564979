"""Long-running commands, started for real and ended the way an operator's service manager ends them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.waiting import wait_until

SCRIPTS = Path(sys.executable).parent
"""Where the environment's commands are: fedq, rq-dashboard."""


def free_port() -> int:
    """A port of loopback that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Service:
    """A command that serves until it is told to stop. Its output goes to a file that :meth:`output` reads."""

    def __init__(
        self, name: str, command: Sequence[str], *, log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.command = [str(word) for word in command]
        self.environment = {**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})}
        # As in a service manager's environment: the commands of this installation come first.
        self.environment["PATH"] = f"{SCRIPTS}:{os.environ['PATH']}"
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                self.command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._log.parent,
                start_new_session=True,
            )
        return self

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def ended_by_itself(self) -> int | None:
        """The status with which it has exited, if it was not killed by a signal."""
        status = None if self._process is None else self._process.poll()
        return None if status is None or status < 0 else status

    def output(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def wait_until(self, predicate: Callable[[], object], description: str, *, timeout: float = 30.0) -> None:
        """Wait for ``predicate()``, and fail at once, with the output, when the command has ended meanwhile."""

        def ready() -> bool:
            if not self.running:
                assert self._process is not None
                raise RuntimeError(f"{self.name} ended with {self._process.returncode}:\n{self.output()[-3000:]}")
            return bool(predicate())

        wait_until(ready, lambda: f"{description}; {self.name} has said:\n{self.output()[-3000:]}", timeout=timeout)

    def stop(self, *, timeout: float = 30.0) -> int:
        """SIGTERM, as a service manager sends it; the exit code. Killed, and an error, after ``timeout`` seconds."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(
                f"{self.name} did not end within {timeout:g} s of SIGTERM; it has said:\n{self.output()[-3000:]}"
            ) from None

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.running:
            self.stop() if error is None else self.kill()
