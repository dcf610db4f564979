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
from collections.abc import Iterator
from dataclasses import dataclass
from math import floor

from benchmarks.counters import Monitor
from benchmarks.federation import Federation
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
    "fork": Counts(commands=59.5, round_trips=25.0, bytes=20_000.0),
    "run": Counts(commands=58.5, round_trips=20.0, bytes=19_500.0),
    "inline": Counts(commands=58.5, round_trips=20.0, bytes=19_500.0),
}
"""What a message may cost. docs/benchmarks.md says the same, and a test compares both with what is counted."""


def count(federation: Federation, *, rounds: int = ROUNDS, tries: int = TRIES) -> tuple[Counts, dict[str, float]]:
    """What a message costs now, and its commands by name."""
    messages = rounds * len(federation.nodes)
    federation.rounds(3, 1000)
    names = {scripts.digest(name): name for name in scripts.names()}
    monitors, traffics = [], []
    for _ in range(tries):
        # What workers note about a job after its reply is part of it, and not of the next one.
        time.sleep(SETTLE)
        with Monitor(federation.client, names) as monitor:
            federation.rounds(rounds, 1000)
            time.sleep(SETTLE)
        monitors.append(monitor)
        # Not at the same time: what a monitor is sent is traffic too.
        before = federation.server.traffic()
        federation.rounds(rounds, 1000)
        time.sleep(SETTLE)
        traffics.append(federation.server.between(before, federation.server.traffic()))
    names_seen = {name for monitor in monitors for name in monitor.calls}
    least = {name: min(monitor.calls.get(name, 0) for monitor in monitors) / messages for name in sorted(names_seen)}
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
    """Rows whose floor is the documented count."""
    for isolation in options.isolation_or(*ISOLATIONS):
        options.say(f"counts: {isolation}")
        with Federation(NODES, isolation) as federation:
            federation.submit()
            counts, by_name = count(federation)
            federation.finish()
        allowed = COUNTS[isolation]
        at_most = Goal("ratio", "<=", 1.0)
        for what, value, limit, unit, more in (
            ("commands", counts.commands, allowed.commands, "commands", by_name),
            ("round trips", counts.round_trips, allowed.round_trips, "round trips", {}),
            ("on the wire", counts.bytes, allowed.bytes, "bytes", {}),
        ):
            yield Row(
                "counts",
                what,
                isolation,
                NODES,
                1000,
                [value],
                [limit],
                "documented",
                unit,
                at_most,
                {f"commands.{name}": calls for name, calls in more.items()},
            )
