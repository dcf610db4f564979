"""Each node draws a plane through its own points and takes a few steps towards it."""

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


def data(partition: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(partition)
    x = rng.normal(size=(40, 3))
    return x, x @ np.array([1.0, -2.0, 0.5]) + 0.1 * rng.normal(size=40)


@app.lifespan()
def lifespan(context: Context):
    print("the lifespan begins")
    yield
    print("the lifespan ends")


@app.train()
def train(message: Message, context: Context) -> Message:
    x, y = data(int(context.node_config["partition-id"]))
    (w,) = message.content["arrays"].to_numpy_ndarrays()
    for _ in range(5):
        w = w - message.content["config"]["lr"] * x.T @ (x @ w - y) / len(y)
    seen = context.state.metric_records.get("seen", MetricRecord({"times": 0}))["times"] + 1
    context.state["seen"] = MetricRecord({"times": seen})
    metrics = MetricRecord({"num-examples": len(y), "loss": float(np.mean((x @ w - y) ** 2)), "times": seen})
    return Message(RecordDict({"arrays": ArrayRecord([w]), "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    x, y = data(100 + int(context.node_config["partition-id"]))
    (w,) = message.content["arrays"].to_numpy_ndarrays()
    metrics = MetricRecord({"num-examples": len(y), "loss": float(np.mean((x @ w - y) ** 2))})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
