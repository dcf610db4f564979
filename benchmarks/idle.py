"""Part ``idle``: what a federation costs that has nothing to do."""

from __future__ import annotations

import time
from collections.abc import Iterator

from benchmarks.counters import memory
from benchmarks.federation import Federation
from benchmarks.options import Options
from benchmarks.rows import Goal, Row

SETTLE = 2.0
"""Seconds after the last node came online until nothing of the start is left."""

MOST_CORES = 0.05
MOST_PSS = 1e9


def measure(options: Options) -> Iterator[Row]:
    """Processor time and memory of server, SuperLink and SuperNodes together."""
    seconds = 2.0 if options.small else options.seconds
    for isolation in options.isolation_or("fork"):
        for nodes in options.nodes_or(16):
            options.say(f"idle: {isolation}, {nodes} nodes, {seconds:g} s")
            with Federation(nodes, isolation) as federation:
                time.sleep(SETTLE)
                before, began, traffic = federation.cpu_seconds(), time.monotonic(), federation.server.traffic()
                time.sleep(seconds)
                cores = (federation.cpu_seconds() - before) / (time.monotonic() - began)
                asked = federation.server.between(traffic, federation.server.traffic())
                found = memory(federation.pids)
            more = {
                "processes": float(found.processes),
                "rss": float(found.rss),
                "round_trips_per_second": asked.reads / seconds,
            }
            yield Row(
                "idle", "processor", isolation, nodes, 0, [cores], unit="cores",
                goal=Goal("median", "<=", MOST_CORES), more=more,
            )  # fmt: skip
            yield Row(
                "idle", "memory (PSS)", isolation, nodes, 0, [float(found.pss)], unit="bytes",
                goal=Goal("median", "<=", MOST_PSS), more=more,
            )  # fmt: skip
