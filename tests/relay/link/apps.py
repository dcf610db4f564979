"""Apps that the tests of this folder submit: modules of their own, as a user's would be."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path

import numpy as np

from fedq.apps import ArrayRecord, ClientApp, ConfigRecord, Context, Grid, Message, MetricRecord, RecordDict, ServerApp
from fedq.apps.strategy import FedAvg, Result
from tests.relay.link import helpers

client = ClientApp()
server = ServerApp()
printing = ServerApp()
failing = ServerApp()
leaving = ServerApp()
waiting = ServerApp()
dying = ServerApp()
dying_late = ServerApp()
without_main = ServerApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    arrays = [helpers.plus(array, 1.0) for array in message.content.array_records["arrays"].to_numpy_ndarrays()]
    metrics = MetricRecord({"num-examples": 2, "loss": 0.5})
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
