"""The clipping of central differential privacy, as a mod."""

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import fixedclipping_mod

app = ClientApp()


@app.train(mods=[fixedclipping_mod])
def train(message: Message, context: Context) -> Message:
    (w,) = message.content["arrays"].to_numpy_ndarrays()
    step = np.random.default_rng(int(context.node_config["partition-id"])).normal(size=w.shape).astype(w.dtype)
    metrics = MetricRecord({"num-examples": 10})
    return Message(RecordDict({"arrays": ArrayRecord([w + step]), "metrics": metrics}), reply_to=message)
