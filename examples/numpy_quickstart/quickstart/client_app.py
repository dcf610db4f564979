"""The node's side."""
# isort: skip_file

from fedq.apps import ArrayRecord, Context, Message, MetricRecord, RecordDict
from fedq.apps import ClientApp

from .task import fit, load_data, loss

app = ClientApp()


@app.train()
def train(msg: Message, context: Context) -> Message:
    """Train the model on local data."""
    model = msg.content["arrays"].to_numpy_ndarrays()
    x, y, _, _ = load_data(context.node_config["partition-id"], context.node_config["num-partitions"])

    train_loss = fit(model, x, y, context.run_config["local-epochs"], msg.content["config"]["lr"])

    metrics = MetricRecord({"train_loss": train_loss, "num-examples": len(y)})
    content = RecordDict({"arrays": ArrayRecord(model), "metrics": metrics})
    return Message(content=content, reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context) -> Message:
    """Evaluate the model on local data."""
    model = msg.content["arrays"].to_numpy_ndarrays()
    _, _, x, y = load_data(context.node_config["partition-id"], context.node_config["num-partitions"])

    metrics = MetricRecord({"eval_loss": loss(model, x, y), "num-examples": len(y)})
    return Message(content=RecordDict({"metrics": metrics}), reply_to=msg)
