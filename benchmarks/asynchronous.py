"""Part ``async``: time to a given accuracy with FedBuff and FedAsync, beside FedAvg, where some nodes are slow.

And with FedAvg of the first replies, which leaves the slow nodes out and need not become as accurate: it is stopped
when FedAvg of all would have been there.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from benchmarks.federation import Federation
from benchmarks.launch import ROOT
from benchmarks.options import Options
from benchmarks.rows import Goal, Row
from fedq.relay import SuperLink

PROJECT = ROOT / "examples" / "fedbuff_stragglers"
ACCURACY, SMALL_ACCURACY = 0.93, 0.8
ROUNDS = 1200
"""More than it takes: the run is stopped when it is as accurate as wanted."""
LIMIT = 600.0
"""Seconds after which a run has missed it."""


def measure(options: Options) -> Iterator[Row]:
    """Rows for each isolation and number of nodes. All strategies in turn, on the same federation."""
    accuracy = SMALL_ACCURACY if options.small else ACCURACY
    for isolation in options.isolation_or("run"):
        for nodes in options.nodes or ((3,) if options.small else (6,)):
            options.say(f"async: {isolation}, {nodes} nodes")
            with Federation(nodes, isolation) as federation:
                names = ("fedbuff", "fedasync", "fedavg", "fedavg-quickest")
                buffered, mixed, averaged, quickest = (
                    Training(federation, name, accuracy, options.small) for name in names
                )
                for _ in range(options.repetitions):
                    buffered.run()
                    mixed.run()
                    averaged.run()
                    quickest.run(seconds=averaged.seconds[-1])
            for training, name, goal in (
                (buffered, "FedBuff", Goal("ratio", "<=", 0.5)),
                (mixed, "FedAsync", Goal("ratio", "<=", 1.0)),
                (quickest, f"FedAvg of the first {max(1, nodes // 2)} replies", None),
            ):
                what = f"{name}, to {accuracy:.0%}"
                yield Row(
                    *("async", what, isolation, nodes, 0, training.seconds, averaged.seconds, "FedAvg", "s", goal),
                    {
                        "updates": median(training.updates),
                        "floor_updates": median(averaged.updates),
                        "replies": median(training.replies),
                        "floor_replies": median(averaged.replies),
                        "accuracy": median(training.best),
                    },
                )


class Training:
    """Trains with one of the strategies again and again, and keeps what each time took to the wanted accuracy.

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
            "buffer-size": max(1, len(federation.nodes) // 2),
            **({"pause": 0.02} if small else {}),
        }
        self.seconds: list[float] = []
        self.updates: list[float] = []
        self.replies: list[float] = []
        self.best: list[float] = []

    def run(self, *, seconds: float | None = None) -> None:
        """One run, stopped when it is as accurate as wanted, or after so many seconds. Without them it has to be."""
        run = self._link.submit(PROJECT, config=self._config)
        began, took, updates, replies, best = 0.0, 0.0, 0, 0, 0.0
        for event in run.events(timeout=LIMIT):
            if event.kind == "strategy":
                began = event.time
            elif event.kind == "round":
                if seconds is not None and event.time - began > seconds:
                    break
                took, updates, replies = event.time - began, int(event.data["round"]), replies + event.data["replies"]
                best = max(best, float((event.data["server"] or {}).get("accuracy", 0.0)))
                if best >= self._accuracy:
                    break
        run.stop("measured")
        run.wait(timeout=60.0)
        if best < self._accuracy:
            if seconds is None:
                detail = run.info().detail
                raise RuntimeError(f"{self._strategy} came to {best:.3f} instead of {self._accuracy} ({detail})")
            took = seconds
        self.seconds.append(took)
        self.updates.append(float(updates))
        self.replies.append(float(replies))
        self.best.append(best)
