"""What a node does: train on its digits, evaluate on those it holds back, or train alone for comparison."""

from __future__ import annotations

from typing import cast

import numpy as np

from digits import task
from fedq.apps import ArrayRecord, ClientApp, Context, Message, MetricRecord, RecordDict

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """One round: some epochs from the model that was sent."""
    config = message.content.config_records["config"]
    round_number = cast(int, config["server-round"])
    return _train(message, context, rounds=[round_number])


@app.train("alone")
def train_alone(message: Message, context: Context) -> Message:
    """As many epochs as all rounds together, without the others: what this node could do by itself."""
    return _train(message, context, rounds=list(range(1, int(context.run_config["num-rounds"]) + 1)))


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Loss and accuracy on this node's validation examples."""
    _, examples = _data(context)
    loss, accuracy = task.evaluate(message.content.array_records["arrays"].to_numpy_ndarrays(), examples)
    metrics = MetricRecord({"loss": loss, "accuracy": accuracy, "num-examples": len(examples[1])})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def _train(message: Message, context: Context, rounds: list[int]) -> Message:
    config = context.run_config
    examples, _ = _data(context)
    model = message.content.array_records["arrays"].to_numpy_ndarrays()
    loss = 0.0
    for number in rounds:
        rng = np.random.default_rng([int(config["seed"]), int(context.node_config["partition-id"]), number])
        model, loss = task.train(
            model,
            examples,
            epochs=int(config["local-epochs"]),
            rate=float(config["learning-rate"]),
            batch=int(config["batch-size"]),
            rng=rng,
        )
    content = RecordDict(
        {
            "arrays": ArrayRecord(model),
            "metrics": MetricRecord({"loss": loss, "num-examples": len(examples[1])}),
        }
    )
    return Message(content, reply_to=message)


def _data(context: Context) -> tuple[task.Examples, task.Examples]:
    node = context.node_config
    return task.node_data(int(node["partition-id"]), int(node["num-partitions"]), seed=int(context.run_config["seed"]))
