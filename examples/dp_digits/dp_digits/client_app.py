"""What a node does: train on its digits. The mod clips the update before it leaves the node."""

from __future__ import annotations

from dp_digits import task
from fedq.apps import ArrayRecord, ClientApp, Context, Message, MetricRecord, RecordDict
from fedq.apps.mod import fixedclipping_mod

app = ClientApp(mods=[fixedclipping_mod])


@app.train()
def train(message: Message, context: Context) -> Message:
    """Some steps from the model that was sent. Every node weighs the same, so that its size stays its own affair."""
    node, config = context.node_config, context.run_config
    examples = task.node_data(int(node["partition-id"]), int(node["num-partitions"]), seed=int(config["seed"]))
    (model,) = message.content.array_records["arrays"].to_numpy_ndarrays()
    model = task.train(model, examples, epochs=int(config["local-epochs"]), rate=float(config["learning-rate"]))
    content = RecordDict({"arrays": ArrayRecord([model]), "metrics": MetricRecord({"weight": 1})})
    return Message(content, reply_to=message)
