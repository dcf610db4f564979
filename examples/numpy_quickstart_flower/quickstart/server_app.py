"""The server's side."""
# isort: skip_file

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from .task import initial_model

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run FedAvg and save the final model where the config says."""
    strategy = FedAvg(fraction_evaluate=1.0, min_train_nodes=4, min_evaluate_nodes=4, min_available_nodes=4)

    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(initial_model()),
        train_config=ConfigRecord({"lr": context.run_config["learning-rate"]}),
        num_rounds=context.run_config["num-server-rounds"],
    )

    for server_round, metrics in result.evaluate_metrics_clientapp.items():
        print(f"round {server_round}: {metrics['eval_loss']:.6f}")
    if path := context.run_config.get("final-model", ""):
        np.savez(path, *result.arrays.to_numpy_ndarrays())
