"""What a node does: tell the sums of its features, then fit or evaluate the model on features that are scaled alike."""

from __future__ import annotations

from typing import cast

import numpy as np

from cancer import task
from fedq.apps import ArrayRecord, ClientApp, ConfigRecord, Context, Message, MetricRecord, RecordDict

app = ClientApp()


@app.query("statistics")
def statistics(message: Message, context: Context) -> Message:
    """How many examples there are, and the sum and the sum of squares of each feature. No example leaves the node."""
    features, _ = _data(context)
    metrics = MetricRecord(
        {
            "count": len(features),
            "sum": [float(value) for value in features.sum(axis=0)],
            "squares": [float(value) for value in (features**2).sum(axis=0)],
        }
    )
    return Message(RecordDict({"statistics": metrics}), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Some epochs of scikit-learn's SGDClassifier, from the weights that were sent."""
    config, sent = context.run_config, message.content.config_records["config"]
    features, labels = _data(context)
    scaled = _scaled(features, sent), labels
    weights, bias = message.content.array_records["arrays"].to_numpy_ndarrays()
    model = task.fitted(
        scaled,
        weights,
        bias,
        epochs=int(config["local-epochs"]),
        regularization=float(config["regularization"]),
        seed=int(config["seed"]) + cast(int, sent["server-round"]),
    )
    loss, _ = task.evaluate(scaled, model.coef_, model.intercept_)
    metrics = MetricRecord({"loss": loss, "num-examples": len(labels)})
    arrays = ArrayRecord([model.coef_, model.intercept_])
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Loss and accuracy on this node's examples."""
    features, labels = _data(context)
    weights, bias = message.content.array_records["arrays"].to_numpy_ndarrays()
    loss, accuracy = task.evaluate((_scaled(features, message.content.config_records["config"]), labels), weights, bias)
    metrics = MetricRecord({"loss": loss, "accuracy": accuracy, "num-examples": len(labels)})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def _scaled(features: task.Floats, config: ConfigRecord) -> task.Floats:
    scaled: task.Floats = (features - np.array(config["mean"])) / np.array(config["deviation"])
    return scaled


def _data(context: Context) -> task.Examples:
    node = context.node_config
    return task.node_data(int(node["partition-id"]), int(node["num-partitions"]), int(context.run_config["seed"]))
