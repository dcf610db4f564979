"""Part ``async``: the time to a given accuracy with FedBuff, beside FedAvg, where some nodes are slow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from statistics import median

from benchmarks.federation import Federation
from benchmarks.launch import ROOT
from benchmarks.options import Options
from benchmarks.rows import Goal, Row
from fedq.relay import SuperLink

PROJECT = ROOT / "examples" / "fedbuff_stragglers"
ACCURACY, SMALL_ACCURACY = 0.93, 0.8
ROUNDS = 400
"""More than it takes: the run is stopped when it is as accurate as wanted."""
LIMIT = 600.0
"""Seconds after which a run has missed it."""


def measure(options: Options) -> Iterator[Row]:
    """A row for each isolation and number of nodes. Both strategies in turn, on the same federation."""
    accuracy = SMALL_ACCURACY if options.small else ACCURACY
    for isolation in options.isolation_or("run"):
        for nodes in options.nodes or ((3,) if options.small else (6,)):
            options.say(f"async: {isolation}, {nodes} nodes")
            with ExitStack() as stack:
                federation = stack.enter_context(Federation(nodes, isolation))
                buffered = Training(federation, "fedbuff", accuracy, options.small)
                averaged = Training(federation, "fedavg", accuracy, options.small)
                for _ in range(options.repetitions):
                    buffered.run()
                    averaged.run()
            yield Row(
                "async",
                f"FedBuff, to {accuracy:.0%}",
                isolation,
                nodes,
                0,
                buffered.seconds,
                averaged.seconds,
                "FedAvg",
                "s",
                Goal("ratio", "<=", 0.5),
                {
                    "updates": median(buffered.updates),
                    "floor_updates": median(averaged.updates),
                    "replies": median(buffered.replies),
                    "floor_replies": median(averaged.replies),
                },
            )


class Training:
    """Trains with one of the two strategies again and again, and keeps what each time took to the wanted accuracy.

    The clock is the server's. It begins with the event that tells the strategy's start, when ServerApp and nodes are
    there, and ends with that of the first round after which the model is accurate enough on the examples that the
    ServerApp holds back.
    """

    def __init__(self, federation: Federation, strategy: str, accuracy: float, small: bool) -> None:
        self._link: SuperLink = federation.link
        self._strategy, self._accuracy = strategy, accuracy
        self._config = {
            "strategy": strategy,
            "num-rounds": ROUNDS,
            "min-nodes": len(federation.nodes),
            "buffer-size": len(federation.nodes) // 2,
            **({"pause": 0.02} if small else {}),
        }
        self.seconds: list[float] = []
        self.updates: list[float] = []
        self.replies: list[float] = []

    def run(self) -> None:
        """One run, stopped when it is there."""
        run = self._link.submit(PROJECT, config=self._config)
        began, replies, best = 0.0, 0, 0.0
        for event in run.events(timeout=LIMIT):
            if event.kind == "strategy":
                began = event.time
            elif event.kind == "round":
                replies += int(event.data["replies"])
                best = max(best, float((event.data["server"] or {}).get("accuracy", 0.0)))
                if best >= self._accuracy:
                    self.seconds.append(event.time - began)
                    self.updates.append(float(event.data["round"]))
                    self.replies.append(float(replies))
                    run.stop("as accurate as wanted")
                    run.wait(timeout=60.0)
                    return
        run.stop("not as accurate as wanted")
        raise RuntimeError(f"{self._strategy} came to {best:.3f} instead of {self._accuracy} ({run.info().detail})")
