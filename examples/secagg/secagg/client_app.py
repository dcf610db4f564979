"""The node's side: an ordinary training function, and the mod that masks what it returns."""

from fedq.apps import ArrayRecord, ClientApp, Context, Message, MetricRecord, RecordDict
from fedq.apps.mod import secaggplus_mod

from .task import fit, load_data

app = ClientApp(mods=[secaggplus_mod])


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train on the node's patients. The mod replaces the arrays by masked integers and drops the metrics."""
    model = message.content["arrays"].to_numpy_ndarrays()
    x, y = load_data(context.node_config["partition-id"], context.node_config["num-partitions"])
    fit(model, x, y, context.run_config["local-steps"], context.run_config["learning-rate"])
    content = RecordDict({"arrays": ArrayRecord(model), "metrics": MetricRecord({"num-examples": len(y)})})
    return Message(content, reply_to=message)
