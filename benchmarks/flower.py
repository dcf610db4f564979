"""Part ``flower``: the same rounds, and the same idleness, on Flower 1.42 in deployment mode, beside this system."""

from __future__ import annotations

import time
from collections.abc import Iterator
from statistics import median

from benchmarks.counters import memory
from benchmarks.federation import Federation
from benchmarks.flower_federation import VERSION, FlowerFederation, flower_python
from benchmarks.options import Options
from benchmarks.rounds import LARGE, SMALL
from benchmarks.rows import Goal, Row

FASTER = {
    # isolation: at least so many times as fast for small, large and very large payloads
    "fork": (100.0, 20.0, 5.0),
    "run": (300.0, 20.0, 5.0),
}
VERY_LARGE = 50_000_000

SETTLE = 5.0


def measure(options: Options) -> Iterator[Row]:
    """For each number of nodes both federations at the same time, measured in turn.

    The figure is Flower's, the floor ours: the ratio says how many times as long Flower takes.
    """
    python = flower_python(options.flower)
    for nodes in options.nodes_or(2, 4, 8, 16):
        yield from _rounds(FlowerFederation(python, nodes), nodes, options)
    for nodes in options.nodes_or(16):
        yield from _idle(FlowerFederation(python, nodes), nodes, options)


def _rounds(flower: FlowerFederation, nodes: int, options: Options) -> Iterator[Row]:
    options.say(f"flower: {nodes} nodes")
    with flower:
        flower.submit()
        flower.rounds(1, 1000)
        for isolation in options.isolation_or("fork", "run"):
            with Federation(nodes, isolation) as federation:
                federation.submit()
                sizes = options.bytes_or(1000, 1_000_000, 10_000_000, 50_000_000)
                for nbytes in sizes[:1] if options.small else sizes:
                    yield _one_size(flower, federation, nbytes, options)
                federation.finish()


def _one_size(flower: FlowerFederation, federation: Federation, nbytes: int, options: Options) -> Row:
    ours: list[float] = []
    theirs: list[float] = []
    cpu_ours: list[float] = []
    cpu_theirs: list[float] = []
    nodes = len(federation.nodes)
    rounds = 10 if nbytes < LARGE else 1
    federation.rounds(2, nbytes)
    for _ in range(options.repetitions):
        cpu = flower.cpu_seconds()
        theirs += flower.rounds(1, nbytes)["seconds"]
        cpu_theirs.append((flower.cpu_seconds() - cpu) / nodes)
        cpu = federation.cpu_seconds()
        ours.append(sum(federation.rounds(rounds, nbytes)["seconds"]) / rounds)
        cpu_ours.append((federation.cpu_seconds() - cpu) / nodes / rounds)
    goal = FASTER.get(federation.isolation)
    place = 0 if nbytes <= SMALL else 1 if nbytes < VERY_LARGE else 2
    return Row(
        "flower",
        f"Flower {VERSION}, round",
        federation.isolation,
        nodes,
        nbytes,
        theirs,
        ours,
        f"fedq, {federation.isolation}",
        "s",
        Goal("ratio", ">=", goal[place]) if goal and (nbytes <= SMALL or nbytes >= LARGE) else None,
        {
            "cpu_ms_per_message": median(cpu_theirs) * 1000,
            "floor_cpu_ms_per_message": median(cpu_ours) * 1000,
        },
    )


def _idle(flower: FlowerFederation, nodes: int, options: Options) -> Iterator[Row]:
    seconds = 2.0 if options.small else options.seconds
    options.say(f"flower: idle, {nodes} nodes, {seconds:g} s")
    with flower, Federation(nodes, "fork") as federation:
        # The run's ServerApp waits until all nodes are there. It is no part of idleness, but of Flower's start.
        flower.submit()
        flower.close_run()
        time.sleep(SETTLE)
        cpu, began, own = flower.cpu_seconds(), time.monotonic(), federation.cpu_seconds()
        time.sleep(seconds)
        passed = time.monotonic() - began
        cores, own_cores = (flower.cpu_seconds() - cpu) / passed, (federation.cpu_seconds() - own) / passed
        found, own_found = memory(flower.pids), memory(federation.pids)
    for what, theirs, ours, unit in (
        ("processor", cores, own_cores, "cores"),
        ("memory (PSS)", float(found.pss), float(own_found.pss), "bytes"),
    ):
        yield Row(
            "flower",
            f"Flower {VERSION}, idle, {what}",
            "fork",
            nodes,
            0,
            [theirs],
            [ours],
            "fedq, fork",
            unit,
            None,
            {"processes": float(found.processes), "rss": float(found.rss)},
        )
