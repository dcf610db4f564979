"""FedAvgM over the state dict of a network."""

import numpy as np
import torch
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvgM

from flower_torch.task import Net

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    torch.manual_seed(0)
    strategy = FedAvgM(fraction_evaluate=0.0, min_train_nodes=3, min_available_nodes=3, server_momentum=0.5)
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(Net().state_dict()),
        num_rounds=int(context.run_config["num-server-rounds"]),
    )
    np.savez(str(context.run_config["output"]), *result.arrays.to_numpy_ndarrays())
