"""FedXgbBagging."""

import numpy as np
import xgboost as xgb
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedXgbBagging

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    strategy = FedXgbBagging(fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=3, min_available_nodes=3)
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord([np.frombuffer(b"", dtype=np.uint8)]),
        num_rounds=int(context.run_config["num-server-rounds"]),
    )
    booster = xgb.Booster()
    booster.load_model(bytearray(result.arrays["0"].numpy().tobytes()))
    # The order of the trees is that of the replies' arrival; their sum is not.
    x = np.random.default_rng(0).normal(size=(50, 4))
    np.savez(str(context.run_config["output"]), booster.predict(xgb.DMatrix(x), output_margin=True))
