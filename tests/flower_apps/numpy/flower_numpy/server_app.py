"""Flower's quickstart: FedAvg over all nodes."""

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    strategy = FedAvg(min_train_nodes=3, min_evaluate_nodes=3, min_available_nodes=3)
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord([np.zeros(3)]),
        train_config=ConfigRecord({"lr": context.run_config["lr"]}),
        num_rounds=int(context.run_config["num-server-rounds"]),
    )
    np.savez(str(context.run_config["output"]), *result.arrays.to_numpy_ndarrays())
