"""Apps that the tests of this folder submit: modules of their own, as a user's would be."""

from __future__ import annotations

import logging
import os
import random
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fedq.apps import ArrayRecord, ClientApp, ConfigRecord, Context, Grid, Message, MetricRecord, RecordDict, ServerApp
from fedq.apps.strategy import FedAvg, FedBuff, Result
from fedq.apps.strategy.folding import UsableReply
from tests.relay.link import helpers

client = ClientApp()
ticketed = ClientApp()
uneven = ClientApp()
server = ServerApp()
printing = ServerApp()
failing = ServerApp()
leaving = ServerApp()
waiting = ServerApp()
dying = ServerApp()
dying_late = ServerApp()
dying_buffered = ServerApp()
dying_within_budget = ServerApp()
without_main = ServerApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    arrays = [helpers.plus(array, 1.0) for array in message.content.array_records["arrays"].to_numpy_ndarrays()]
    metrics = MetricRecord({"num-examples": 2, "loss": 0.5})
    return Message(RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=message)


@ticketed.train()
def train_with_a_ticket(message: Message, context: Context) -> Message:
    """As above; each reply carries a number that no other has."""
    reply = train(message, context)
    reply.content.metric_records["metrics"]["ticket"] = random.random()
    return reply


@uneven.train()
def train_unevenly(message: Message, context: Context) -> Message:
    """The node ``node-<n>`` has n + 1 examples, and takes a step that no other takes."""
    number = int(context.node_id.removeprefix("node-"))
    step = np.float32(0.1 * (number + 1) / 3)
    arrays = [array * step + step for array in message.content.array_records["arrays"].to_numpy_ndarrays()]
    metrics = MetricRecord({"num-examples": number + 1, "loss": 1.0 / (number + 1)})
    return Message(RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=message)


@client.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1, "accuracy": 0.25})}), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    size, rounds = int(context.run_config.get("size", 10)), int(context.run_config.get("num-rounds", 2))
    strategy = FedAvg(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)
    strategy.start(grid, ArrayRecord([np.zeros(size)]), num_rounds=rounds)


@printing.main()
def talk(grid: Grid, context: Context) -> Result:
    print("printed")
    logging.getLogger("my.app").warning("logged\nin two lines")
    grid.emit("metric", {"name": "answer", "value": 42})
    return Result(arrays=ArrayRecord([np.arange(3)]))


@failing.main()
def fail(grid: Grid, context: Context) -> None:
    helpers.divide(1, 0)


@leaving.main()
def leave(grid: Grid, context: Context) -> None:
    raise SystemExit("enough")


@waiting.main()
def wait(grid: Grid, context: Context) -> None:
    grid.emit("metric", {"name": "pid", "value": os.getpid()})
    list(grid.stream([Message(RecordDict({"a": ConfigRecord({"a": 1})}), name, "query") for name in ["held"]]))


@dying.main()
def die(grid: Grid, context: Context) -> None:
    """Kills its own process until a file says that it was killed often enough; saves in between if told to."""
    file = Path(str(context.run_config["file"]))
    with file.open("a") as notes:
        notes.write(f"{len(context.state)}\n")
    if context.run_config.get("save"):
        context.state["saved"] = ConfigRecord({"a": 1})
        context.save()
    if len(file.read_text().splitlines()) <= int(context.run_config["times"]):
        os.kill(os.getpid(), signal.SIGKILL)


@dying_late.main()
def die_late(grid: Grid, context: Context) -> None:
    """Kills its own process in the last of three rounds, when its replies are folded, as often as it is told."""
    file = Path(str(context.run_config["file"]))

    def evaluate(number: int, arrays: ArrayRecord) -> MetricRecord:
        if number == 3:
            with file.open("a") as notes:
                notes.write("dying\n")
            if len(file.read_text().splitlines()) <= int(context.run_config["times"]):
                os.kill(os.getpid(), signal.SIGKILL)
        return MetricRecord({"sum": float(arrays.to_numpy_ndarrays()[0].sum())})

    strategy = FedAvg(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)
    strategy.start(grid, ArrayRecord([np.zeros(3)]), num_rounds=3, evaluate_fn=evaluate)


class Dying(FedBuff):
    """Kills its own process, as often as it is told, when half of a buffer behind the first checkpoint is full.

    A file has a line for each time that it was: the tickets of the replies that were in it.
    """

    def __init__(self, context: Context, **options: Any) -> None:
        super().__init__(**options)
        self.context, self.taken = context, list[str]()

    def take(self, reply: UsableReply, base: ArrayRecord, staleness: int) -> None:
        super().take(reply, base, staleness)
        self.taken.append(repr(reply.metrics["ticket"]))
        if self.context.state and len(self.taken) == self.buffer_size // 2:
            file = Path(str(self.context.run_config["file"]))
            with file.open("a") as notes:
                notes.write(" ".join(self.taken) + "\n")
            if len(file.read_text().splitlines()) <= int(self.context.run_config["times"]):
                os.kill(os.getpid(), signal.SIGKILL)

    def merge(self, model: ArrayRecord) -> ArrayRecord:
        self.taken.clear()
        return super().merge(model)


@dying_buffered.main()
def die_buffered(grid: Grid, context: Context) -> None:
    """Its metrics are the tickets of all replies of a round."""

    def tickets(replies: list[RecordDict], key: str) -> MetricRecord:
        return MetricRecord({"tickets": [reply.metric_records["metrics"]["ticket"] for reply in replies]})

    options: dict[str, Any] = {"fraction_evaluate": 0.0, "min_available_nodes": 3, "seed": 1}
    strategy = Dying(context, buffer_size=4, train_metrics_aggr_fn=tickets, **options)
    strategy.start(grid, ArrayRecord([np.zeros(3)]), num_rounds=3)


@dying_within_budget.main()
def die_within_budget(grid: Grid, context: Context) -> None:
    """Sums up with the budget that it is told, and kills its own process in mid-round as often as it is told, behind
    the third reply that it has had."""
    file = Path(str(context.run_config.get("file", "")))
    budget = int(context.run_config.get("budget", 0)) or None
    strategy = FedAvg(fraction_evaluate=0.0, min_available_nodes=4, reply_budget=budget)
    aggregate = strategy.aggregate_train
    taken = 0

    def some(replies: Iterable[Message]) -> Iterator[Message]:
        nonlocal taken
        for reply in replies:
            yield reply
            taken += 1
            if taken == 3 and "times" in context.run_config:
                with file.open("a") as notes:
                    notes.write(f"{len(context.state)}\n")
                if len(file.read_text().splitlines()) <= int(context.run_config["times"]):
                    os.kill(os.getpid(), signal.SIGKILL)

    strategy.aggregate_train = lambda number, replies: aggregate(number, some(replies))  # type: ignore[method-assign]
    strategy.start(grid, large_model(), num_rounds=2)


def large_model() -> ArrayRecord:
    """96 KiB in arrays that travel by themselves."""
    return ArrayRecord([np.linspace(-1, 1, 6144, dtype=np.float32) * number for number in range(1, 5)])
