"""Helper processes of a benchmark: each ends with the benchmark, however that ends."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[1]
"""The clone."""

# Asks the kernel for a signal at the parent's death (PR_SET_PDEATHSIG is 1) and becomes the program; nothing of it
# stays in the program's memory, so that what is measured is the program.
_BIND = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


def bound(command: Sequence[str]) -> list[str]:
    """``command`` as one that ends with this process."""
    return [sys.executable, "-c", _BIND, str(os.getpid()), *command]


class Helper:
    """A process that takes JSON lines and answers each with one.

    Args:
        name: for error texts.
        command: the program and its arguments.
        log: where its stderr goes.
        environment: variables beside the inherited ones.
    """

    def __init__(
        self, name: str, command: Sequence[str], *, log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.log = log
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                bound(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
                start_new_session=True,
            )

    def send(self, request: Mapping[str, Any]) -> None:
        """Give it something to do."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None

    def receive(self) -> dict[str, Any]:
        """Its answer; waits for it. Raises RuntimeError with its last words when it has ended."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise self._ended()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Send and receive."""
        self.send(request)
        return self.receive()

    def close(self) -> None:
        """End it, and wait until it has ended."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        end(self.process)

    def _ended(self) -> RuntimeError:
        status = self.process.wait()
        return RuntimeError(f"{self.name} ended with {status}: {tail(self.log)}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def end(process: subprocess.Popen[bytes], grace: float = 10.0) -> None:
    """SIGTERM, then after ``grace`` seconds SIGKILL."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(grace)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a log."""
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) or "it said nothing"
    except OSError:
        return "it left no log"
