"""Part ``round``: rounds back to back, beside bare RQ doing as many jobs and bare redis-py moving the bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from statistics import median

from benchmarks.counters import cpu_seconds
from benchmarks.federation import Federation
from benchmarks.floors import BytesFloor, Floor, RqFloor, SumOfFloors
from benchmarks.options import ISOLATIONS, Options
from benchmarks.rows import Goal, Row

SMALL = 100_000
"""Bytes up to which the floor is jobs alone."""
LARGE = 10_000_000
"""Bytes from which on the floor is bytes alone."""

FROZEN_ARRAYS = 10
"""Arrays of the model of which all but one are frozen."""


def measure(options: Options) -> Iterator[Row]:
    """A row for each isolation, number of nodes and size; for the largest model also with nine tenths of it frozen."""
    for isolation in options.isolation_or(*ISOLATIONS):
        for nodes in options.nodes_or(2, 4, 8, 16):
            options.say(f"round: {isolation}, {nodes} nodes")
            with Federation(nodes, isolation) as federation:
                federation.submit()
                sizes = options.bytes_or(1000, 1_000_000, 10_000_000, 50_000_000)
                for nbytes in sizes:
                    yield one_size(federation, nbytes, options)
                if max(sizes) > SMALL:
                    yield frozen(federation, max(sizes), options)
                federation.finish()


def rounds_per_repetition(nbytes: int, small: bool) -> int:
    """Enough rounds that one repetition takes a noticeable time."""
    if small:
        return 5 if nbytes <= SMALL else 1
    return 20 if nbytes <= SMALL else 5 if nbytes < LARGE else 1


def floor_for(stack: ExitStack, federation: Federation, nbytes: int) -> Floor:
    """What a round of this size is compared with."""
    nodes, folder = len(federation.nodes), federation.folder
    jobs = stack.enter_context(RqFloor(federation.url, nodes, federation.isolation, folder)) if nbytes < LARGE else None
    moved = stack.enter_context(BytesFloor(federation.url, nodes, nbytes, folder)) if nbytes > SMALL else None
    parts: list[Floor] = [part for part in (jobs, moved) if part is not None]
    return parts[0] if len(parts) == 1 else SumOfFloors(*parts)


def goal_for(isolation: str, nbytes: int) -> Goal | None:
    """What such a round is to reach."""
    if nbytes <= SMALL:
        return Goal("ratio", "<=", 1.0 if isolation == "fork" else 1.5)
    return Goal("ratio", "<=", 1.5) if nbytes >= LARGE else None


def one_size(federation: Federation, nbytes: int, options: Options) -> Row:
    """Rounds and floor in turn."""
    rounds = rounds_per_repetition(nbytes, options.small)
    samples: list[float] = []
    floors: list[float] = []
    costs: dict[str, list[float]] = {}
    messages = rounds * len(federation.nodes)
    with ExitStack() as stack:
        floor = floor_for(stack, federation, nbytes)
        federation.rounds(2, nbytes)
        floor.seconds(1)
        for _ in range(options.repetitions):
            before, cpu = federation.server.traffic(), federation.cpu_seconds()
            seconds = federation.rounds(rounds, nbytes)["seconds"]
            cpu = federation.cpu_seconds() - cpu
            traffic = federation.server.between(before, federation.server.traffic())
            samples.append(sum(seconds) / rounds)
            started = cpu_seconds([*floor.pids, federation.server_pid])
            floors.append(floor.seconds(rounds))
            started = cpu_seconds([*floor.pids, federation.server_pid]) - started
            for name, value in (
                ("cpu_ms_per_message", cpu * 1000),
                ("floor_cpu_ms_per_message", started * 1000),
                ("round_trips_per_message", float(traffic.reads)),
                ("wire_bytes_per_message", float(traffic.bytes)),
            ):
                costs.setdefault(name, []).append(value / messages)
    return Row(
        "round",
        "",
        federation.isolation,
        len(federation.nodes),
        nbytes,
        samples,
        floors,
        floor.name,
        "s",
        goal_for(federation.isolation, nbytes),
        {name: median(values) for name, values in costs.items()},
    )


def frozen(federation: Federation, nbytes: int, options: Options) -> Row:
    """Bytes on the wire in a round of a model of which nine tenths do not change, beside those that have to travel."""
    nodes = len(federation.nodes)
    samples = []
    for _ in range(options.repetitions):
        # The first of these rounds makes all of the model known to everybody.
        totals = []
        for rounds in (1, 2):
            before = federation.server.traffic()
            federation.rounds(rounds, nbytes, arrays=FROZEN_ARRAYS, changing=1)
            totals.append(federation.server.between(before, federation.server.traffic()).bytes)
        samples.append(float(totals[1] - totals[0]))
    # Out: written once, read by each node. Back: written by each and read. All of the array that changes.
    changed = nbytes / FROZEN_ARRAYS * (1 + 3 * nodes)
    return Row(
        "round",
        f"{100 - 100 // FROZEN_ARRAYS} % frozen",
        federation.isolation,
        nodes,
        nbytes,
        samples,
        [changed] * len(samples),
        "what changed",
        "bytes",
        Goal("ratio", "<=", 1.1),
        {"wire_bytes_unfrozen": float(nbytes * (1 + 3 * nodes))},
    )
