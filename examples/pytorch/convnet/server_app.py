"""What the server does: average the nodes' state dicts, and test the average after each round."""

from __future__ import annotations

from convnet import task
from fedq.apps import ArrayRecord, Context, Grid, MetricRecord, ServerApp
from fedq.apps.strategy import FedAvg, Result

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> Result:
    """Train for ``num-rounds`` rounds."""
    config = context.run_config
    seed, nodes = int(config["seed"]), int(config["min-nodes"])
    examples = task.test_data(seed)
    model = task.initial_model(seed)
    initial = ArrayRecord(model.state_dict())

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        model.load_state_dict(arrays.to_torch_state_dict())
        loss, accuracy = task.evaluate(model, examples)
        return MetricRecord({"loss": loss, "accuracy": accuracy})

    strategy = FedAvg(min_train_nodes=nodes, min_evaluate_nodes=nodes, min_available_nodes=nodes)
    return strategy.start(grid, initial, num_rounds=int(config["num-rounds"]), evaluate_fn=evaluate)
