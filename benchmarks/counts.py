"""Part ``counts``: commands, round trips and bytes for one message of 1 KB. Exact, unlike time.

They are taken with two nodes in rounds back to back, so that what a round costs once (its push, its checkpoint) is
shared by two messages. Heartbeats and renewals of leases come in now and then; the least of a few tries is what counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.counters import Monitor
from benchmarks.federation import Federation
from benchmarks.options import ISOLATIONS, Options
from benchmarks.rows import Goal, Row
from fedq.relay import scripts

NODES = 2
ROUNDS = 20
TRIES = 3


@dataclass(frozen=True, slots=True)
class Counts:
    """For one message: commands that clients send (a script is one), reads from sockets, bytes in both directions."""

    commands: float
    round_trips: float
    bytes: float


COUNTS: dict[str, Counts] = {
    "fork": Counts(commands=62.0, round_trips=23.0, bytes=19_600.0),
    "run": Counts(commands=58.5, round_trips=19.0, bytes=19_400.0),
    "inline": Counts(commands=58.5, round_trips=19.0, bytes=19_400.0),
}
"""What a message may cost. docs/benchmarks.md says the same, and a test compares both with what is counted."""


def count(federation: Federation, *, rounds: int = ROUNDS, tries: int = TRIES) -> tuple[Counts, dict[str, float]]:
    """What a message costs now, and its commands by name."""
    messages = rounds * len(federation.nodes)
    federation.rounds(3, 1000)
    names = {scripts.digest(name): name for name in scripts.names()}
    monitors, traffics = [], []
    for _ in range(tries):
        with Monitor(federation.client, names) as monitor:
            federation.rounds(rounds, 1000)
        monitors.append(monitor)
        # Not at the same time: what a monitor is sent is traffic too.
        before = federation.server.traffic()
        federation.rounds(rounds, 1000)
        traffics.append(federation.server.between(before, federation.server.traffic()))
    least = min(monitors, key=lambda monitor: monitor.total)
    counts = Counts(
        commands=least.total / messages,
        round_trips=min(traffic.reads for traffic in traffics) / messages,
        bytes=min(traffic.bytes for traffic in traffics) / messages,
    )
    return counts, {name: calls / messages for name, calls in sorted(least.calls.items())}


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
