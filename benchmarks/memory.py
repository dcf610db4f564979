"""Part ``memory``: the most that ServerApp, work-horse and server need for a large model."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from benchmarks.counters import PeakWatch, peak_rss
from benchmarks.federation import Federation
from benchmarks.options import Options
from benchmarks.rows import Goal, Row

SMALL_MODEL = 1000
"""Bytes of the model whose rounds are the start, from which the large one's memory is counted, that of the server
too: everything is loaded and connected by then, and nothing is large yet."""

BUDGET = 6
"""The reply budget, in models: there is room for four replies beside a partial sum."""

LINGER = 0.1
"""Seconds that a ClientApp stays at work, so that its process is seen also where the watch has to wait for a core."""

ATTEMPTS = 10
"""Times that rounds are done until a process is seen."""

SERVER_MARGIN = 32_000_000
"""Bytes beyond the models that the server may need."""


def measure(options: Options) -> Iterator[Row]:
    """Bytes above the start, beside the bytes of the model."""
    for isolation in options.isolation_or("fork"):
        for nodes in options.nodes_or(2, 8, 16):
            for nbytes in options.bytes_or(50_000_000):
                options.say(f"memory: {isolation}, {nodes} nodes")
                yield from _peaks(Federation(nodes, isolation), nbytes, options)
                options.say(f"memory: {isolation}, {nodes} nodes, with a reply budget")
                yield from _peaks_within_budget(Federation(nodes, isolation), nbytes, options)


def _peaks(federation: Federation, nbytes: int, options: Options) -> Iterator[Row]:
    rounds = 1 if options.small else max(3, options.repetitions)
    with federation:
        app = federation.submit()["pid"]
        services = [pid for name, pid in federation.services.items() if name != "superlink"]
        horse_start = median(_horses(federation, services, max(3, rounds), SMALL_MODEL))
        app_start = peak_rss(app)
        at_start = federation.server.used_memory()
        horses = [peak - horse_start for peak in _horses(federation, services, rounds, nbytes)]
        app_peak = peak_rss(app) - app_start
        server_peak = federation.server.peak_memory() - at_start
        federation.finish()
        assert federation.run is not None
        federation.run.remove()
        left = federation.server.settled_memory(at_start) - at_start
    nodes = len(federation.nodes)

    def row(what: str, samples: list[float], goal: Goal, floor: float = float(nbytes), is_: str = "the model") -> Row:
        return Row("memory", what, federation.isolation, nodes, nbytes, samples, [floor], is_, "bytes", goal)

    yield row("ServerApp, peak", [float(app_peak)], Goal("ratio", "<=", 4.0))
    yield row("work-horse, peak", horses, Goal("ratio", "<=", 3.0))
    allowed = (3 + nodes) * nbytes + SERVER_MARGIN
    yield row("server, peak", [float(server_peak)], Goal("median", "<=", float(allowed)))
    yield row("server, after the run", [float(left)], Goal("median", "<=", 1e6), float(at_start), "before the run")


def _peaks_within_budget(federation: Federation, nbytes: int, options: Options) -> Iterator[Row]:
    """FedAvg with a reply budget, on a server that has done nothing else: it keeps the peak of all its life."""
    rounds = 1 if options.small else 3
    budget = BUDGET * nbytes
    with federation:
        app = federation.submit()["pid"]
        federation.ask({"do": "strategy", "rounds": 2, "bytes": SMALL_MODEL})
        app_start = peak_rss(app)
        at_start = federation.server.used_memory()
        federation.ask({"do": "strategy", "rounds": rounds, "bytes": nbytes, "budget": budget})
        app_peak = peak_rss(app) - app_start
        server_peak = federation.server.peak_memory() - at_start
        federation.finish()
    nodes = len(federation.nodes)
    for what, peak, goal in (
        (f"server, peak, budget of {BUDGET} models", server_peak, Goal("median", "<=", float(budget + 4 * nbytes))),
        (f"ServerApp, peak, budget of {BUDGET} models", app_peak, Goal("ratio", "<=", 4.0)),
    ):
        yield Row(
            "memory",
            what,
            federation.isolation,
            nodes,
            nbytes,
            [float(peak)],
            [float(nbytes)],
            "the model",
            "bytes",
            goal,
        )


def _horses(federation: Federation, services: list[int], rounds: int, nbytes: int) -> list[int]:
    """The peaks of the ClientApps' processes in so many rounds, and in more of them while none was seen."""
    for _ in range(ATTEMPTS):
        with PeakWatch(lambda: services) as watch:
            pids = federation.rounds(rounds, nbytes, linger=LINGER)["pids"]
        if peaks := watch.of(pids):
            return peaks
    raise RuntimeError(f"no process of a ClientApp was seen in {ATTEMPTS * rounds} rounds")
