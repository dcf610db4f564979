"""Part ``counts``: commands, round trips and bytes for one message of 1 KB. Exact, or nearly so, unlike time.

They are taken with two nodes in rounds back to back, so that what a round costs once (its push, its checkpoint) is
shared by two messages.

Commands are exact: what belongs to messages comes once or several times for each message or each round, so that its
number for one message is a multiple of a half; heartbeats and renewals of leases, which come as time passes, are a
small fraction and fall out. Round trips and bytes are counted by the server, which does not tell these apart; the least
of a few tries is taken, and the documented numbers leave them a little room.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import floor

from benchmarks.counters import Monitor
from benchmarks.federation import Federation
from benchmarks.floors import RqFloor
from benchmarks.options import ISOLATIONS, Options
from benchmarks.rows import Goal, Row
from fedq.relay import scripts

NODES = 2
ROUNDS = 20
TRIES = 3
SETTLE = 0.2
"""Seconds until workers have noted everything about their last jobs."""


@dataclass(frozen=True, slots=True)
class Counts:
    """For one message: commands that clients send (a script is one), reads from sockets, bytes in both directions."""

    commands: float
    round_trips: float
    bytes: float


COUNTS: dict[str, Counts] = {
    "fork": Counts(commands=19.0, round_trips=11.9, bytes=13_600.0),
    "run": Counts(commands=19.0, round_trips=11.6, bytes=13_500.0),
    "inline": Counts(commands=19.0, round_trips=11.7, bytes=13_500.0),
}
"""What a message may cost. docs/benchmarks.md says the same, and a test compares both with what is counted."""


def count(federation: Federation, *, rounds: int = ROUNDS, tries: int = TRIES) -> tuple[Counts, dict[str, float]]:
    """What a message costs now, and its commands by name."""
    federation.rounds(3, 1000)
    return counted(federation, lambda: federation.rounds(rounds, 1000), rounds * len(federation.nodes), tries)


def count_floor(federation: Federation, *, rounds: int = ROUNDS, tries: int = TRIES) -> tuple[Counts, dict[str, float]]:
    """What a job that does nothing costs bare RQ on the same server, as many jobs at a time; with what watches it."""
    nodes = len(federation.nodes)
    with RqFloor(federation.url, nodes, federation.isolation, federation.folder) as floor:
        floor.seconds(3)
        return counted(federation, lambda: floor.seconds(rounds), rounds * nodes, tries)


def counted(
    federation: Federation, work: Callable[[], object], messages: int, tries: int
) -> tuple[Counts, dict[str, float]]:
    """What ``work`` costs for each of its messages."""
    names = {scripts.digest(name): name for name in scripts.names()}
    monitors, traffics = [], []
    for _ in range(tries):
        # What workers note about a job after its reply is part of it, and not of the next one.
        time.sleep(SETTLE)
        with Monitor(federation.client, names) as monitor:
            work()
            time.sleep(SETTLE)
        monitors.append(monitor)
        # Not at the same time: what a monitor is sent is traffic too.
        before = federation.server.traffic()
        work()
        time.sleep(SETTLE)
        traffics.append(federation.server.between(before, federation.server.traffic()))
    seen = {name for monitor in monitors for name in monitor.calls}
    least = {name: min(monitor.calls.get(name, 0) for monitor in monitors) / messages for name in sorted(seen)}
    by_name = {name: exact for name, calls in least.items() if (exact := whole(calls))}
    counts = Counts(
        commands=sum(by_name.values()),
        round_trips=min(traffic.reads for traffic in traffics) / messages,
        bytes=min(traffic.bytes for traffic in traffics) / messages,
    )
    return counts, by_name


def whole(calls: float) -> float:
    """The multiple of a half that is not above ``calls``: what came as time passed is less than that."""
    return floor(2 * calls + 0.1) / 2


def measure(options: Options) -> Iterator[Row]:
    """What a message costs beside what it may cost; and beside that, for comparison, a job of bare RQ."""
    for isolation in options.isolation_or(*ISOLATIONS):
        options.say(f"counts: {isolation}")
        with Federation(NODES, isolation) as federation:
            federation.submit()
            message, by_name = count(federation)
            federation.finish()
            job, job_by_name = count_floor(federation)
        yield from rows("message", isolation, message, COUNTS[isolation], by_name)
        yield from rows("bare RQ's job", isolation, job, None, job_by_name)


def rows(what: str, isolation: str, counts: Counts, allowed: Counts | None, by_name: dict[str, float]) -> Iterator[Row]:
    """A row for each of the three counts."""
    for name, unit in (("commands", "commands"), ("round_trips", "round trips"), ("bytes", "bytes")):
        limit = getattr(allowed, name) if allowed is not None else None
        yield Row(
            "counts",
            f"{what}: {unit}",
            isolation,
            NODES,
            1000,
            [getattr(counts, name)],
            [limit] if limit is not None else [],
            "documented" if limit is not None else "",
            unit,
            Goal("ratio", "<=", 1.0) if limit is not None else None,
            {f"commands.{command}": calls for command, calls in by_name.items()} if name == "commands" else {},
        )
