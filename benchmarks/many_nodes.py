"""Part ``nodes``: ten thousand registered nodes: listing, sampling, heartbeats, and a round over some of them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

from benchmarks.counters import cpu_seconds
from benchmarks.federation import Federation
from benchmarks.launch import Helper
from benchmarks.light_nodes import names
from benchmarks.options import Options
from benchmarks.rows import Goal, Row
from fedq.node.pace import paced
from fedq.relay.nodes import HEARTBEAT

SAMPLED = 100
"""Nodes that take part in the round."""

LISTING = 0.05
COMMAND = 0.5
BEATING = 0.1


def measure(options: Options) -> Iterator[Row]:
    """Seconds; for the heartbeats the share of a core that the server needs."""
    count = min(200, options.registered) if options.small else options.registered
    sampled = min(SAMPLED, count // 2)
    options.say(f"nodes: {count} registered")
    with Federation(0, "fork") as federation:
        command = [sys.executable, "-m", "benchmarks.light_nodes", federation.url]
        with Helper("light-nodes", command, log=federation.folder / "light-nodes.log") as light:
            light.ask({"do": "register", "count": count})
            federation.submit()

            answer = federation.ask({"do": "nodes", "repetitions": options.repetitions + 1, "sample": sampled})
            if answer["nodes"] != count:
                raise RuntimeError(f"the ServerApp sees {answer['nodes']} of {count} nodes")
            yield _row("node ids", count, answer["listing"][1:], Goal("median", "<=", LISTING))
            yield _row(f"FedAvg samples {sampled}", count, answer["sampling"][1:])
            yield _row("fedq nodes", count, _command(federation, options.repetitions), Goal("median", "<=", COMMAND))
            yield _heartbeats(federation, light, count, 2.0 if options.small else min(options.seconds, 15.0))
            yield _round(federation, light, sampled, options)
            federation.finish()


def _row(what: str, nodes: int, samples: list[float], goal: Goal | None = None) -> Row:
    return Row("nodes", what, "", nodes, 0, samples, goal=goal)


def _command(federation: Federation, repetitions: int) -> list[float]:
    samples = []
    for _ in range(repetitions + 1):
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "fedq.cli", "nodes"],
            env={**os.environ, "FEDQ_REDIS_URL": federation.url},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        samples.append(time.perf_counter() - began)
    return samples[1:]


def _heartbeats(federation: Federation, light: Helper, count: int, seconds: float) -> Row:
    cpu = cpu_seconds([federation.server_pid])
    answer = light.ask({"do": "beat", "count": count, "seconds": seconds})
    cpu = cpu_seconds([federation.server_pid]) - cpu
    # What one costs, as often as all of them come; the light client may not have been that fast.
    cores = cpu / answer["beats"] * count / paced(HEARTBEAT, count)
    return Row(
        "nodes",
        "heartbeats, server",
        "",
        count,
        0,
        [cores],
        unit="cores",
        goal=Goal("median", "<=", BEATING),
        more={"beats_per_second": answer["beats"] / answer["seconds"], "cpu_us_per_beat": cpu / answer["beats"] * 1e6},
    )


def _round(federation: Federation, light: Helper, sampled: int, options: Options) -> Row:
    chosen = names(sampled)
    samples: list[float] = []
    for _ in range(options.repetitions + 1):
        light.send({"do": "answer", "chosen": chosen, "messages": sampled})
        answer = federation.ask({"do": "rounds", "rounds": 1, "bytes": 1000, "nodes": chosen})
        light.receive()
        samples += answer["seconds"]
    return Row("nodes", "round, light nodes", "", sampled, 1000, samples[1:])
