"""Custom actions, and functions that fail."""

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.query("mean")
def mean(message: Message, context: Context) -> Message:
    values = np.random.default_rng(int(context.node_config["partition-id"])).normal(size=1000)
    config = ConfigRecord({"node": context.node_id, "dst": message.metadata.dst_node_id})
    reply = RecordDict({"sums": ArrayRecord([np.array([values.sum(), values.size])]), "config": config})
    return Message(reply, reply_to=message)


@app.query("fails")
def fails(message: Message, context: Context) -> Message:
    raise ValueError("as asked")


@app.query("refuses")
def refuses(message: Message, context: Context) -> Message:
    return Message(Error(1234, "not today"), reply_to=message)
