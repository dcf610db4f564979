"""What a system costs besides time: processor seconds, memory, commands, round trips and bytes on the wire."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import psutil
import redis

# -- processes ---------------------------------------------------------------------------------------------------------


def family(roots: Iterable[int]) -> list[psutil.Process]:
    """The living processes ``roots`` and all that descend from them, each once."""
    found: dict[int, psutil.Process] = {}
    for pid in roots:
        with contextlib.suppress(psutil.NoSuchProcess):
            root = psutil.Process(pid)
            found[pid] = root
            found.update((child.pid, child) for child in root.children(recursive=True))
    return list(found.values())


def cpu_seconds(roots: Iterable[int]) -> float:
    """Processor seconds of ``roots`` and their descendants so far, with those that have ended and were waited for."""
    total = 0.0
    for process in family(roots):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of some processes together. PSS shares each page among those that have it; RSS counts it for each."""

    pss: int
    rss: int
    processes: int


def memory(roots: Iterable[int]) -> Memory:
    """Memory of ``roots`` and their descendants now, in bytes."""
    pss = rss = count = 0
    for process in family(roots):
        with contextlib.suppress(psutil.NoSuchProcess):
            info = process.memory_full_info()
            rss += info.rss
            pss += getattr(info, "pss", info.rss)
            count += 1
    return Memory(pss, rss, count)


def peak_rss(pid: int) -> int:
    """The most memory that process ``pid`` has had so far, in bytes (``VmHWM``); 0 when it is gone."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


class PeakWatch:
    """While entered, notes the peak memory of every descendant of ``roots``, of short-lived ones too.

    The kernel keeps a process's peak, so only what it takes in its last milliseconds can be missed; on a machine with
    other work to do also a process that is gone sooner than this is back. Look for those that matter in `peaks`.
    """

    def __init__(self, roots: Callable[[], Iterable[int]], interval: float = 0.004) -> None:
        self._roots = roots
        self._interval = interval
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peaks", daemon=True)
        self.peaks: dict[int, int] = {}

    def of(self, pids: Iterable[int]) -> list[int]:
        """The peaks of those of ``pids`` that were seen."""
        return [self.peaks[pid] for pid in pids if pid in self.peaks]

    def _watch(self) -> None:
        while not self._over.wait(self._interval):
            for process in family(self._roots()):
                if peak := peak_rss(process.pid):
                    self.peaks[process.pid] = max(peak, self.peaks.get(process.pid, 0))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()


# -- the server --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Traffic:
    """What a server has received and sent. Those of two moments can be subtracted.

    Attributes:
        reads: times that it read something from a client's socket: for small requests, the round trips.
        received, sent: bytes on the wire.
        calls: commands by name, those within scripts among them.
    """

    reads: int
    received: int
    sent: int
    calls: Mapping[str, int] = field(default_factory=dict)

    def __sub__(self, other: Traffic) -> Traffic:
        return Traffic(
            self.reads - other.reads,
            self.received - other.received,
            self.sent - other.sent,
            {
                name: count - other.calls.get(name, 0)
                for name, count in self.calls.items()
                if count != other.calls.get(name, 0)
            },
        )

    @property
    def bytes(self) -> int:
        """Bytes in both directions."""
        return self.received + self.sent


class Server:
    """A server as a benchmark sees it, on a connection of its own."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self._own = Traffic(0, 0, 0)
        # Asking costs something as well; it is the same each time but for the number of digits.
        first, second = self._ask(), self._ask()
        self._own = second - first

    def traffic(self) -> Traffic:
        """What it has received and sent so far, without what asking takes."""
        return self._ask()

    def between(self, before: Traffic, after: Traffic) -> Traffic:
        """What lies between two moments, without what asking took."""
        return after - before - self._own

    def used_memory(self) -> int:
        """``used_memory`` in bytes."""
        info: dict[str, Any] = self.client.info("memory")
        return int(info["used_memory"])

    def peak_memory(self) -> int:
        """The most ``used_memory`` since the server's start, in bytes."""
        info: dict[str, Any] = self.client.info("memory")
        return int(info["used_memory_peak"])

    def settled_memory(self, wanted: int, *, patience: float = 20.0) -> int:
        """``used_memory`` once it has come down to ``wanted``, to 1 MB, or after ``patience`` seconds."""
        give_up = time.monotonic() + patience
        while (used := self.used_memory()) > wanted + 1e6 and time.monotonic() < give_up:
            time.sleep(0.2)
        return used

    @property
    def pid(self) -> int:
        """The server's process id."""
        info: dict[str, Any] = self.client.info("server")
        return int(info["process_id"])

    def _ask(self) -> Traffic:
        stats: dict[str, Any]
        calls: dict[str, Any]
        with self.client.pipeline(transaction=False) as pipe:
            pipe.info("stats")
            pipe.info("commandstats")
            stats, calls = pipe.execute()
        return Traffic(
            reads=int(stats["total_reads_processed"]),
            received=int(stats["total_net_input_bytes"]),
            sent=int(stats["total_net_output_bytes"]),
            calls={name.removeprefix("cmdstat_"): int(entry["calls"]) for name, entry in calls.items()},
        )


class Monitor:
    """While entered, notes every command that clients send, scripts by their names, what scripts call left out."""

    def __init__(self, client: redis.Redis, scripts: Mapping[str, str]) -> None:
        self._client = client
        self._scripts = scripts
        self._mark = "bench-monitor-ends"
        self.calls: dict[str, int] = {}
        self._thread = threading.Thread(target=self._note, name="monitor", daemon=True)
        self._begun = threading.Event()

    @property
    def total(self) -> int:
        """Commands altogether."""
        return sum(self.calls.values())

    def _note(self) -> None:
        with self._client.monitor() as monitor:  # type: ignore[no-untyped-call]
            self._begun.set()
            for command in monitor.listen():
                if command["client_type"] == "lua":
                    continue
                words = command["command"].split(" ")
                name = words[0].upper()
                if name == "ECHO" and words[1:] == [self._mark]:
                    return
                if name == "EVALSHA":
                    name = self._scripts.get(words[1], "EVALSHA")
                self.calls[name] = self.calls.get(name, 0) + 1

    def __enter__(self) -> Self:
        self._thread.start()
        self._begun.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # What was sent before this is in the monitor's stream before it.
        self._client.echo(self._mark)
        self._thread.join(10)


__all__ = [
    "Memory",
    "Monitor",
    "PeakWatch",
    "Server",
    "Traffic",
    "cpu_seconds",
    "family",
    "memory",
    "peak_rss",
]
