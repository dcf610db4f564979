# mypy: ignore-errors
"""Each ClientApp adds one to the arrays, and counts in its Context how often."""

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Add one, on average over the nodes."""
    model = message.content["arrays"]
    place, nodes = (int(context.node_config[key]) for key in ("partition-id", "num-partitions"))
    step = np.float32(1 + (place - (nodes - 1) / 2) / 1024)
    arrays = ArrayRecord({name: Array(array.numpy() + step) for name, array in model.items()})
    calls = context.state["counter"]["calls"] if "counter" in context.state else 0
    context.state["counter"] = MetricRecord({"calls": int(calls) + 1})
    metrics = MetricRecord({"num-examples": 1})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)
