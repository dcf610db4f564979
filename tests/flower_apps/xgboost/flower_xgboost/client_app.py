"""Trees by bagging, as in Flower's quickstart for XGBoost."""

import numpy as np
import xgboost as xgb
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()
PARAMS = {
    "objective": "binary:logistic",
    "base_score": 0.5,  # else each node has its own, and the first reply's becomes that of all
    "eta": 0.3,
    "max_depth": 3,
    "nthread": 1,
    "num_parallel_tree": 1,
    "seed": 1,
}


@app.train()
def train(message: Message, context: Context) -> Message:
    rng = np.random.default_rng(int(context.node_config["partition-id"]))
    x = rng.normal(size=(80, 4))
    matrix = xgb.DMatrix(x, label=(x[:, 0] + x[:, 1] > 0).astype(int))
    if message.content["config"]["server-round"] == 1:
        booster = xgb.train(PARAMS, matrix, num_boost_round=1)
        trees = booster
    else:
        booster = xgb.Booster(params=PARAMS)
        booster.load_model(bytearray(message.content["arrays"]["0"].numpy().tobytes()))
        booster.update(matrix, booster.num_boosted_rounds())
        trees = booster[booster.num_boosted_rounds() - 1 : booster.num_boosted_rounds()]
    model = np.frombuffer(trees.save_raw("json"), dtype=np.uint8)
    metrics = MetricRecord({"num-examples": 80})
    return Message(RecordDict({"arrays": ArrayRecord([model]), "metrics": metrics}), reply_to=message)
