"""Something that is done every second beside a wait, without holding it up."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

__all__ = ["Ticker"]

log = logging.getLogger("fedq.worker")


class Ticker:
    """Calls ``action`` every ``interval`` seconds in a thread of its own, the first time at once.

    It ends when ``action`` returns something other than None, which is then in :attr:`result`, after a call of
    ``wake``; errors are logged once per kind, and the next call follows. A worker starts tickers only when a job has
    been running for a while and ends them before it forks again: a process that forks has one thread.
    """

    def __init__(
        self, name: str, interval: float, action: Callable[[], object | None], wake: Callable[[], None]
    ) -> None:
        self.interval = interval
        self.result: object | None = None
        self._action = action
        self._wake = wake
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
        self._thread.start()

    def _loop(self) -> None:
        said = ""
        while True:
            started = time.monotonic()
            try:
                self.result = self._action()
                said = ""
            except Exception as error:  # the server may be away; the next call tries again
                if type(error).__name__ != said:
                    said = type(error).__name__
                    log.warning("%s: %s: %s", self._thread.name, said, error)
            if self.result is not None:
                self._wake()
                return
            if self._stop.wait(max(0.0, self.interval - (time.monotonic() - started))):
                return

    def end(self, timeout: float | None = None) -> bool:
        """Stop calling; waits for a call that is under way, at most ``timeout`` seconds. Whether it has ended."""
        self._stop.set()
        self._thread.join(timeout)
        return not self._thread.is_alive()
