"""What a node does: train the network it is sent on its own images, or evaluate it on them."""

from __future__ import annotations

from typing import cast

from convnet import task
from fedq.apps import ArrayRecord, ClientApp, Context, Message, MetricRecord, RecordDict

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Some epochs from the network that was sent; the reply is its state dict."""
    config, node = context.run_config, context.node_config
    partition = int(node["partition-id"])
    server_round = cast(int, message.content.config_records["config"]["server-round"])
    examples = _data(context)
    model = _model(message)
    loss = task.train(
        model,
        examples,
        epochs=int(config["local-epochs"]),
        rate=float(config["learning-rate"]),
        batch=int(config["batch-size"]),
        seed=int(config["seed"]) + 1000 * server_round + partition,
    )
    metrics = MetricRecord({"loss": loss, "num-examples": len(examples[1])})
    return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Loss and accuracy on this node's images."""
    examples = _data(context)
    loss, accuracy = task.evaluate(_model(message), examples)
    metrics = MetricRecord({"loss": loss, "accuracy": accuracy, "num-examples": len(examples[1])})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def _model(message: Message) -> task.ConvNet:
    model = task.ConvNet()
    model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    return model


def _data(context: Context) -> task.Examples:
    node = context.node_config
    return task.node_data(int(node["partition-id"]), int(node["num-partitions"]), int(context.run_config["seed"]))
