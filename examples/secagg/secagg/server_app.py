"""The server's side: FedAvg that is given sums only."""

from fedq.apps import ArrayRecord, Context, Grid, MetricRecord, ServerApp
from fedq.apps.strategy import FedAvg, Result, SecAggPlus

from .task import accuracy, initial_model, load_held_out

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> Result:
    """Train with all nodes, some of which may drop out, and look at the held-out patients after each round."""
    nodes = context.run_config["min-nodes"]
    strategy = SecAggPlus(
        FedAvg(fraction_evaluate=0.0, min_train_nodes=nodes, min_available_nodes=nodes),
        clipping_range=context.run_config["clipping-range"],
    )
    print(f"of {nodes} nodes {strategy.tolerated_dropouts(nodes)} may drop out")
    x, y = load_held_out()

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        return MetricRecord({"accuracy": accuracy(arrays.to_numpy_ndarrays(), x, y)})

    rounds = context.run_config["num-rounds"]
    return strategy.start(grid, ArrayRecord(initial_model()), num_rounds=rounds, evaluate_fn=evaluate)
