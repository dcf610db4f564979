"""What a node does: grow trees on what the model it is sent gets wrong, and reply with the new trees alone."""

from __future__ import annotations

import numpy as np

from fedq.apps import ArrayRecord, ClientApp, Context, Message, MetricRecord, RecordDict
from trees import task

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Boosting from the model that was sent. What XGBoost calls a model travels as the bytes of one array."""
    config, examples = context.run_config, task.node_data(*_place(context))
    given = task.parameters(float(config["learning-rate"]), int(config["max-depth"]), _place(context)[1])
    trees = task.boosted(_model(message), examples, int(config["local-epochs"]), given)
    metrics = MetricRecord({"num-examples": examples.num_row()})
    arrays = ArrayRecord([np.frombuffer(trees, dtype=np.uint8)])
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Loss and accuracy on this node's examples."""
    examples = task.node_data(*_place(context))
    loss, accuracy = task.evaluate(_model(message), examples)
    metrics = MetricRecord({"loss": loss, "accuracy": accuracy, "num-examples": examples.num_row()})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def _model(message: Message) -> bytes:
    (model,) = message.content.array_records["arrays"].to_numpy_ndarrays()
    return model.tobytes()


def _place(context: Context) -> tuple[int, int, int]:
    node = context.node_config
    return int(node["partition-id"]), int(node["num-partitions"]), int(context.run_config["seed"])
