"""SIGTERM, for a service that has not started its processes yet."""

from __future__ import annotations

import signal
import sys
import time
from types import FrameType, TracebackType
from typing import Any, Self

__all__ = ["StopSignal"]


class StopSignal:
    """Inside of it SIGTERM is remembered, for whoever looks.

    Raising from the handler would not do: an exception that happens to be raised within a finalizer is swallowed.
    A Supervisor that runs inside handles the signal itself; it is given this one in case the signal came before.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: Any = None

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGTERM, self._request)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True

    def wait(self, seconds: float) -> None:
        """Sleep, but no longer than until the signal."""
        deadline = time.monotonic() + seconds
        while not self.requested and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))

    def leave_if_requested(self) -> None:
        """End the process, and well, if the signal has come."""
        if self.requested:
            sys.exit(0)
