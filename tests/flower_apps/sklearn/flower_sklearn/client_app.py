"""A logistic regression of scikit-learn, which goes on from the model it is sent."""

import warnings

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    part, parts = int(context.node_config["partition-id"]), int(context.node_config["num-partitions"])
    x, y = make_classification(n_samples=150, n_features=6, random_state=7)
    x, y = x[part::parts], y[part::parts]
    model = LogisticRegression(max_iter=2, warm_start=True)
    model.classes_ = np.array([0, 1])
    model.coef_, model.intercept_ = message.content["arrays"].to_numpy_ndarrays()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(x, y)
    metrics = MetricRecord({"num-examples": len(y), "accuracy": float(model.score(x, y))})
    return Message(
        RecordDict({"arrays": ArrayRecord([model.coef_, model.intercept_]), "metrics": metrics}), reply_to=message
    )
