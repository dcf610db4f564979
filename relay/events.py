"""What a run tells while it goes on: its events, with the log lines of its nodes among them if wanted."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic, sleep
from typing import Any

from fedq.relay import runs
from fedq.relay.connection import Relay
from fedq.relay.errors import RelayUnavailable
from fedq.relay.pauses import Pauses
from fedq.relay.runs import ENDED, Step
from fedq.relay.texts import text

log = logging.getLogger(__name__)

MAX_EVENTS = 20_000
"""Events of a run that are kept, the newest."""

MAX_NOTES = 5_000
"""Unnumbered events of a run, above all lines that its ServerApp prints. Rounds must not be pushed out by them."""

MAX_LOG_LINES = 2_000
"""Lines of one node's log of a run that are kept, the newest."""

_BLOCK = 2.0
"""Seconds after which a follower looks for nodes that have joined the run."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened in a run.

    Attributes:
        kind: ``status``, ``strategy``, ``round``, ``reply-failed``, ``waiting-for-nodes``, ``log``, ``metric`` or
            whatever the ServerApp emits.
        data: JSON values. Of a ``log`` event: ``text``, ``level``, ``origin``, and ``node`` if a ClientApp said it.
        time: when, in seconds since the epoch: by the server's clock, or for a log line by the clock of its node.
        id: its place in the stream it comes from.
    """

    kind: str
    data: Mapping[str, Any]
    time: float
    id: str

    @property
    def final(self) -> bool:
        """Whether it says that the run has ended."""
        return self.kind == "status" and self.data.get("status") in ENDED


@dataclass(frozen=True, slots=True)
class Emitted:
    """The outcome of an event: OK, SEEN (it stands there already), FENCED or OVER; and the run's revision."""

    outcome: Step
    revision: int = 0


def emit(relay: Relay, run: int, token: str, checkpoint: int, number: int, kind: str, data: Any) -> Emitted:
    """Add an event, once per (checkpoint, number); numbers grow within a checkpoint."""
    reply = relay.call(
        "event",
        [relay.keys.run(run), relay.keys.events(run)],
        [token, checkpoint, number, kind, json.dumps(data), MAX_EVENTS],
    )
    outcome = Step(text(reply[0]))
    return Emitted(outcome, int(reply[1]) if outcome in (Step.OK, Step.SEEN) else 0)


def note(relay: Relay, run: int, token: str, events: Sequence[tuple[str, Mapping[str, Any]]]) -> bool:
    """Add events without a number: a ServerApp that runs again adds them again. False once the run is over.

    At most MAX_NOTES of a run are kept; the later ones are dropped.
    """
    args: list[Any] = [token, MAX_EVENTS, MAX_NOTES]
    for kind, data in events:
        args += [kind, json.dumps(data)]
    return text(relay.call("note", [relay.keys.run(run), relay.keys.events(run)], args)[0]) == "OK"


def read_events(
    relay: Relay, run: int, after: str = "0", *, block: float | None = None, count: int = 500
) -> list[Event]:
    """Events after the id ``after``; waits up to ``block`` seconds (at most a few) for the first."""
    with relay.errors():
        raw: Any = relay.redis.xread(
            {relay.keys.events(run): after}, count=count, block=relay.block(block * 1000) if block else None
        )
    if not raw:
        return []
    return [_parse(text(i), text(f[b"kind"]), json.loads(f[b"data"])) for i, f in raw[0][1]]


def append_log(relay: Relay, node: str, run: int, lines: Sequence[Mapping[str, Any]]) -> bool:
    """Add lines (JSON objects) to a node's log of a run, capped. False once the run is over."""
    if not lines:
        return True
    reply = relay.call(
        "log", [relay.keys.log(node, run)], [relay.keys.run(run), MAX_LOG_LINES, *(json.dumps(line) for line in lines)]
    )
    return text(reply[0]) == "OK"


def read_log(relay: Relay, node: str, run: int, after: str = "0", *, count: int = 500) -> list[Event]:
    """Log lines of one node while the run lives; afterwards they stand among the run's events."""
    with relay.errors():
        raw: Any = relay.redis.xread({relay.keys.log(node, run): after}, count=count)
    return [_parse(text(i), "log", json.loads(f[b"data"])) for i, f in raw[0][1]] if raw else []


class Follower:
    """Reads a run's events, and if asked the log streams of its nodes, each entry once.

    Log lines of ClientApps stand under their node while the run lives and are moved to the run's events when it has
    ended; those that were read under the node are left out there.
    """

    def __init__(self, relay: Relay, run: int, *, logs: bool, after: str = "0") -> None:
        self.over = False
        self._relay = relay
        self._run = run
        self._logs = logs
        self._cursors: dict[str, str] = {relay.keys.events(run): after}
        self._read: Counter[bytes] = Counter()

    def read(self, block: float | None = None) -> list[Event]:
        """What has come since the last call, in the order of time; waits up to ``block`` seconds for the first."""
        keys = self._relay.keys
        if self._logs:
            for node in runs.run_nodes(self._relay, self._run):
                self._cursors.setdefault(keys.log(node, self._run), "0")
        wait = self._relay.block(block * 1000) if block else None
        with self._relay.errors():
            raw: Any = self._relay.redis.xread(dict(self._cursors), count=500, block=wait)  # type: ignore[arg-type]
        found: list[Event] = []
        for stream, entries in raw or ():
            own = text(stream) == keys.events(self._run)
            for entry, fields in entries:
                self._cursors[text(stream)] = text(entry)
                event = self._event(text(entry), fields, own)
                if event is not None:
                    found.append(event)
                    if event.kind == "status":
                        self.over = event.final  # a run that failed may have been resumed
        found.sort(key=lambda event: event.time)
        return found

    def _event(self, entry: str, fields: Mapping[bytes, bytes], own: bool) -> Event | None:
        data = fields[b"data"]
        event = _parse(entry, text(fields.get(b"kind", b"log")), json.loads(data))
        if not own:
            self._read[data] += 1
        elif event.kind == "log" and event.data.get("node"):  # moved here from its node
            if not self._logs:
                return None
            if self._read[data] > 0:
                self._read[data] -= 1
                return None
        return event


def follow(
    relay: Relay,
    run: int,
    *,
    logs: bool = False,
    wait: bool = True,
    timeout: float | None = None,
    after: str = "0",
) -> Iterator[Event]:
    """Events of a run as they come, until it is over.

    Args:
        logs: also what its ClientApps logged and printed.
        wait: False ends after what is there now.
        timeout: seconds after which it ends whatever the run does.
        after: the id of an event; only later ones are given.

    The first request raises RelayUnavailable when there is no server; an outage later on is waited for.
    """
    deadline = None if timeout is None else monotonic() + timeout
    runs.run_info(relay, run)
    follower = Follower(relay, run, logs=logs, after=after)
    found = _everything(follower)
    yield from sorted(found, key=lambda event: event.time)
    pauses = Pauses()
    while wait and not follower.over:
        left = _BLOCK if deadline is None else deadline - monotonic()
        if left <= 0:
            return
        try:
            found = follower.read(min(_BLOCK, left))
            pauses.reset()
            if not found and runs.run_info(relay, run).over and not follower.over:
                # The last events were read before this call, or are trimmed; nothing more will come.
                found = _everything(follower)
                follower.over = True
        except RelayUnavailable as error:
            log.warning("run %d: %s; waiting for it", run, error)
            pause = pauses.next()
            sleep(pause if deadline is None else max(0.0, min(pause, deadline - monotonic())))
            continue
        yield from found
    if follower.over:
        yield from _everything(follower)  # lines that came with the last moments of the run


def _everything(follower: Follower) -> list[Event]:
    found: list[Event] = []
    while part := follower.read():
        found += part
    return found


def _parse(entry: str, kind: str, data: Any) -> Event:
    at = int(entry.partition("-")[0]) / 1000
    if kind == "log" and isinstance(data, dict) and isinstance(data.get("time"), int | float):
        at = float(data["time"])
    return Event(kind, data if isinstance(data, dict) else {"value": data}, at, entry)
