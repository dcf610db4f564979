"""What a node does: train on its digits, and take as long over it as its machine is slow."""

from __future__ import annotations

import time

from fedq.apps import ArrayRecord, ClientApp, Context, Message, MetricRecord, RecordDict
from stragglers import task

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Some steps from the model that was sent. Nothing here tells FedBuff from FedAvg."""
    node, config = context.node_config, context.run_config
    partition, partitions, seed = int(node["partition-id"]), int(node["num-partitions"]), int(config["seed"])
    examples = task.node_data(partition, partitions, seed)
    (model,) = message.content.array_records["arrays"].to_numpy_ndarrays()
    model = task.train(model, examples, steps=int(config["local-steps"]), rate=float(config["learning-rate"]))
    slowness = task.slowness(
        partition, partitions, share=float(config["slow-share"]), most=float(config["slow-factor"]), seed=seed
    )
    # Stands for the time that a real model takes on a machine that is so slow.
    time.sleep(float(config["pause"]) * slowness)
    metrics = MetricRecord({"num-examples": len(examples[1]), "slowness": slowness})
    return Message(RecordDict({"arrays": ArrayRecord([model]), "metrics": metrics}), reply_to=message)
