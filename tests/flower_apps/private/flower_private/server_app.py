"""The wrapper of central differential privacy around FedAvg, with a seeded noise."""

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import DifferentialPrivacyClientSideFixedClipping, FedAvg

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    np.random.seed(3)
    inner = FedAvg(fraction_evaluate=0.0, min_train_nodes=3, min_available_nodes=3)
    strategy = DifferentialPrivacyClientSideFixedClipping(inner, 0.2, 1.0, 3)
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord([np.zeros(5, np.float32)]),
        num_rounds=int(context.run_config["num-server-rounds"]),
    )
    np.savez(str(context.run_config["output"]), *result.arrays.to_numpy_ndarrays())
