"""FedAvg with an evaluation at the server."""

import numpy as np
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=3, min_available_nodes=3)
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord([np.zeros((1, 6)), np.zeros(1)]),
        num_rounds=int(context.run_config["num-server-rounds"]),
        evaluate_fn=lambda number, arrays: MetricRecord({"norm": float(np.linalg.norm(arrays["0"].numpy()))}),
    )
    np.savez(str(context.run_config["output"]), *result.arrays.to_numpy_ndarrays())
