"""Part ``messages``: many small messages to two nodes, beside bare RQ's own rate."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from benchmarks.federation import Federation
from benchmarks.floors import RqFloor
from benchmarks.options import ISOLATIONS, Options
from benchmarks.rows import Goal, Row


def measure(options: Options) -> Iterator[Row]:
    """Messages a second, for each isolation."""
    count = 40 if options.small else options.messages
    for isolation in options.isolation_or(*ISOLATIONS):
        for nodes in options.nodes_or(2):
            options.say(f"messages: {isolation}, {nodes} nodes")
            with Federation(nodes, isolation) as federation:
                federation.submit()
                for nbytes in options.bytes_or(1000):
                    yield _rate(federation, count, nbytes, options)
                federation.finish()


def _rate(federation: Federation, count: int, nbytes: int, options: Options) -> Row:
    nodes = len(federation.nodes)
    rates: list[float] = []
    floors: list[float] = []
    cpus: list[float] = []
    trips: list[float] = []

    def once(messages: int) -> float:
        request = {"do": "messages", "number": messages, "bytes": nbytes, "nodes": federation.nodes}
        return messages / float(federation.ask(request)["seconds"])

    with RqFloor(federation.url, nodes, federation.isolation, federation.folder) as floor:
        once(max(nodes, count // 10))
        floor.rate(max(nodes, count // 10))
        for _ in range(options.repetitions):
            before, cpu = federation.server.traffic(), federation.cpu_seconds()
            rates.append(once(count))
            cpus.append((federation.cpu_seconds() - cpu) * 1000 / count)
            trips.append(federation.server.between(before, federation.server.traffic()).reads / count)
            floors.append(floor.rate(count))
    goal = Goal("ratio", ">=", 1.0) if federation.isolation == "fork" else Goal("median", ">=", 200.0)
    return Row(
        "messages",
        f"{count} messages",
        federation.isolation,
        nodes,
        nbytes,
        rates,
        floors,
        floor.name,
        "messages/s",
        goal,
        {"cpu_ms_per_message": median(cpus), "round_trips_per_message": median(trips)},
    )
