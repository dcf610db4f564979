"""What the server does: average the clipped updates, add noise, and say what that has cost."""

from __future__ import annotations

import numpy as np

from dp_digits import task
from fedq.apps import ArrayRecord, Context, Grid, MetricRecord, ServerApp
from fedq.apps.strategy import DifferentialPrivacyClientSideFixedClipping, FedAvg, PrivacyAccountant, Result

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> Result:
    """Train for ``num-rounds`` rounds on all nodes. The test is on the server's own data: it costs no privacy."""
    config = context.run_config
    nodes, examples = int(config["min-nodes"]), task.test_data(int(config["seed"]))

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        return MetricRecord({"accuracy": task.accuracy(arrays.to_numpy_ndarrays()[0], examples)})

    average = FedAvg(fraction_evaluate=0.0, min_train_nodes=nodes, min_available_nodes=nodes, weighted_by_key="weight")
    strategy = DifferentialPrivacyClientSideFixedClipping(
        average,
        noise_multiplier=float(config["noise-multiplier"]),
        clipping_norm=float(config["clipping-norm"]),
        num_sampled_clients=nodes,
        accountant=PrivacyAccountant(float(config["delta"])),
    )
    initial = ArrayRecord([np.zeros((task.FEATURES + 1, task.CLASSES), dtype=np.float32)])
    return strategy.start(grid, initial, num_rounds=int(config["num-rounds"]), evaluate_fn=evaluate)
