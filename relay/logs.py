"""What apps log and print goes to the log of their run; what a service logs goes to its standard error.

Lines are buffered, sent in batches by a thread, and capped at every step: an app that prints without end is slowed down
by no more than its own printing, and what did not fit is counted and said so in the log.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TextIO

MAX_LINE = 8192
"""Characters of one line that are kept."""
MAX_WAITING = 2000
"""Lines that may wait to be sent."""
BATCH = 100
"""Lines sent at a time."""
INTERVAL = 0.25
"""Seconds that lines are gathered before they are sent."""
PATIENCE = 2.0
"""Seconds that the end of an app waits for its last lines to be sent."""

OWN_LOGGERS = ("fedq.relay", "fedq.node", "fedq.worker", "fedq.supervisor", "fedq.cli", "rq")
"""Loggers of the service itself; their records stay in its own log."""

Send = Callable[[Sequence[Mapping[str, Any]]], bool]
"""Writes lines to the run's log; False when it takes no more (the run is over). May raise."""


class LogShipper:
    """Takes lines and sends them from a thread of its own, which starts with the first line.

    ``add`` never waits for the server. ``flush`` and ``close`` wait at most ``patience`` seconds. Lines that did not
    fit, or that the server did not take, are counted in :attr:`dropped`.
    """

    def __init__(
        self,
        send: Send,
        common: Mapping[str, Any] | None = None,
        *,
        interval: float = INTERVAL,
        patience: float = PATIENCE,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.dropped = 0
        self._send = send
        self._common = dict(common or {})
        self._interval = interval
        self._patience = patience
        self._clock = clock
        self._lines: deque[dict[str, Any]] = deque()
        self._lock = threading.Lock()
        self._wake: threading.Event
        self._sent: threading.Condition
        self._asked = self._answered = 0
        self._closing = False
        self._over = False
        self._told = 0
        self._thread: threading.Thread | None = None  # there from the first line on, with what it is woken by

    def add(self, text: str, *, level: str = "INFO", origin: str = "stdout") -> None:
        """One line. ``origin`` is ``stdout``, ``stderr`` or a logger's name."""
        if len(text) > MAX_LINE:
            text = text[:MAX_LINE] + f"… ({len(text) - MAX_LINE} characters left out)"
        line = self._format(text, level, origin)
        with self._lock:
            if self._over or len(self._lines) >= MAX_WAITING:
                self.dropped += 1
                return
            self._lines.append(line)
            if self._thread is None:
                self._wake, self._sent = threading.Event(), threading.Condition()
                self._thread = threading.Thread(target=self._run, name="log-shipper", daemon=True)
                self._thread.start()
            if len(self._lines) >= BATCH:
                self._wake.set()

    def flush(self) -> None:
        """Send what was added so far, for at most ``patience`` seconds. Costs nothing where nothing was ever added."""
        if self._thread is None:
            return
        with self._sent:
            self._asked += 1
            mine = self._asked
            self._wake.set()
            self._sent.wait_for(lambda: self._answered >= mine or self._over, self._patience)

    def close(self) -> None:
        """Send what is left, for at most ``patience`` seconds."""
        self._closing = True
        if self._thread is not None:
            self._wake.set()
            self._thread.join(self._patience)
            with self._lock:
                self.dropped += len(self._lines)
                self._lines.clear()
                self._over = True

    def _format(self, text: str, level: str, origin: str) -> dict[str, Any]:
        clean = text.encode("utf-8", "replace").decode()  # a lone surrogate cannot travel
        return {**self._common, "time": round(self._clock(), 3), "level": level, "origin": origin, "text": clean}

    def _run(self) -> None:
        while not self._over:
            self._wake.wait(self._interval)
            closing = self._closing
            self._wake.clear()
            asked = self._asked
            self._flush()
            with self._sent:
                self._answered = asked
                self._sent.notify_all()
            if closing:
                return

    def _flush(self) -> None:
        while not self._over:
            with self._lock:
                batch = [self._lines.popleft() for _ in range(min(BATCH, len(self._lines)))]
                unsaid = self.dropped - self._told
            if not batch and not unsaid:
                return
            if unsaid:
                batch.append(self._format(f"({unsaid} lines were left out)", "WARNING", "fedq"))
            try:
                self._over = not self._send(batch)
                self._told += unsaid
            except Exception:
                # The server is away or full. The app does not wait for that: the lines are lost, but counted.
                with self._lock:
                    self.dropped += len(batch) - bool(unsaid)
                return


class LineWriter(io.TextIOBase):
    """Stands in for ``sys.stdout`` or ``sys.stderr``: hands on whole lines."""

    def __init__(self, take: Callable[[str], None], original: TextIO) -> None:
        self._take = take
        self._original = original
        self._rest = ""
        self._lock = threading.RLock()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"

    @property
    def buffer(self) -> Any:
        """Bytes written past the text layer go where they went before."""
        return self._original.buffer

    def fileno(self) -> int:
        return self._original.fileno()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        with self._lock:
            *lines, rest = (self._rest + text).split("\n")
            # A progress bar rewrites its line with \r: only what is there at its end matters.
            for line in lines:
                self._take(line.rstrip("\r").rpartition("\r")[2])
            self._rest = rest.rpartition("\r")[2] if len(rest) <= MAX_LINE else ""
            if len(rest) > MAX_LINE:
                self._take(rest)
        return len(text)

    def finish(self) -> None:
        """Hand on a last line without an end."""
        with self._lock:
            if self._rest:
                self._take(self._rest)
                self._rest = ""


class _Handler(logging.Handler):
    def __init__(self, take: Callable[[str, str, str], None], own: list[logging.Handler]) -> None:
        super().__init__()
        self._take = take
        self._own = own

    def emit(self, record: logging.LogRecord) -> None:
        if any(record.name == name or record.name.startswith(name + ".") for name in OWN_LOGGERS):
            for handler in self._own:
                if record.levelno >= handler.level:
                    handler.handle(record)
            return
        try:
            text = self.format(record)
        except Exception:
            self.handleError(record)
            return
        for line in text.split("\n"):
            self._take(line, record.levelname, record.name)


@contextlib.contextmanager
def captured(take: Callable[[str, str, str], None]) -> Iterator[Callable[[], None]]:
    """While inside, ``take(line, level, origin)`` hears of every line printed, and of every record at INFO or above.

    Records of the service itself go where they went before; nothing else reaches the process' own output. Gives a
    function that hands on a last line without an end, as leaving does.
    """
    root = logging.getLogger()
    out, err, handlers, level = sys.stdout, sys.stderr, list(root.handlers), root.level
    writers = (
        LineWriter(lambda line: take(line, "INFO", "stdout"), out),
        LineWriter(lambda line: take(line, "INFO", "stderr"), err),
    )
    handler = _Handler(take, handlers)
    sys.stdout, sys.stderr = writers
    root.handlers = [handler]
    if level > logging.INFO or level == logging.NOTSET:
        root.setLevel(logging.INFO)

    def finish() -> None:
        for writer in writers:
            writer.finish()

    try:
        yield finish
    finally:
        sys.stdout, sys.stderr = out, err
        root.handlers = handlers
        if root.level != level:  # setting it costs every logger what it remembers
            root.setLevel(level)
        finish()


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, text, and the traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": round(record.created, 3),
            "level": record.levelname,
            "logger": record.name,
            "text": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def set_up_logging(log_format: str = "text", level: int = logging.INFO) -> None:
    """Log to standard error, as text or as JSON lines. Replaces what was set up before."""
    handler = logging.StreamHandler()
    if log_format == "json":
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    # RQ says a dozen lines a job; what matters to an operator is said by us.
    logging.getLogger("rq").setLevel(max(level, logging.WARNING))
