"""What the server does: gather the trees of all nodes into one model, and test it after each round."""

from __future__ import annotations

import numpy as np

from fedq.apps import ArrayRecord, Context, Grid, MetricRecord, ServerApp
from fedq.apps.strategy import FedXgbBagging, Result
from trees import task

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> Result:
    """Train for ``num-rounds`` rounds, from no tree at all."""
    config = context.run_config
    nodes = int(config["min-nodes"])
    examples = task.test_data(int(config["seed"]))

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        (model,) = arrays.to_numpy_ndarrays()
        loss, accuracy = task.evaluate(model.tobytes(), examples)
        return MetricRecord({"loss": loss, "accuracy": accuracy})

    strategy = FedXgbBagging(min_train_nodes=nodes, min_evaluate_nodes=nodes, min_available_nodes=nodes)
    nothing = ArrayRecord([np.zeros(0, dtype=np.uint8)])
    return strategy.start(grid, nothing, num_rounds=int(config["num-rounds"]), evaluate_fn=evaluate)
