"""Part ``endurance``: whether the last rounds of a long run are as fast as the first, and what it leaves behind."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.federation import Federation
from benchmarks.options import Options
from benchmarks.rows import Goal, Row

WARM_UP = 10
"""Rounds that are not counted: processes start, caches fill."""


def measure(options: Options) -> Iterator[Row]:
    """Rounds of FedAvg, with all that it does: the last hundred beside the first hundred, and the server's memory."""
    rounds = 40 if options.small else options.rounds
    window = min(100, rounds // 4)
    for isolation in options.isolation_or("fork", "run"):
        for nodes in options.nodes_or(2):
            for nbytes in options.bytes_or(1000):
                options.say(f"endurance: {isolation}, {rounds} rounds on {nodes} nodes")
                with Federation(nodes, isolation) as federation:
                    federation.submit()
                    federation.rounds(WARM_UP, nbytes)
                    before = federation.server.used_memory()
                    request = {"do": "strategy", "rounds": rounds + WARM_UP, "bytes": nbytes}
                    seconds = federation.ask(request)["seconds"][WARM_UP:]
                    federation.finish()
                    after = federation.server.settled_memory(before)
                common = ("endurance", isolation, nodes, nbytes)
                yield _row(common, "last rounds", seconds[-window:], seconds[:window], "first rounds", "s", 1.1)
                yield _row(common, "server, after the run", [float(after)], [float(before)], "before", "bytes", None)


def _row(
    common: tuple[str, str, int, int],
    what: str,
    samples: list[float],
    floors: list[float],
    floor_is: str,
    unit: str,
    limit: float | None,
) -> Row:
    part, isolation, nodes, nbytes = common
    goal = Goal("ratio", "<=", limit) if limit is not None else None
    return Row(part, what, isolation, nodes, nbytes, samples, floors, floor_is, unit, goal)
