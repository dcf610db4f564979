"""What the server does: update the model with whatever ``buffer-size`` nodes have sent, and test it."""

from __future__ import annotations

from fedq.apps import ArrayRecord, Context, Grid, MetricRecord, ServerApp
from fedq.apps.strategy import FedAsync, FedAvg, FedBuff, Result
from stragglers import task

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> Result:
    """Train for ``num-rounds`` updates of the model."""
    config = context.run_config
    examples = task.test_data(int(config["seed"]))

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        return MetricRecord({"accuracy": task.accuracy(arrays.to_numpy_ndarrays()[0], examples)})

    strategy = strategy_named(str(config["strategy"]), int(config["buffer-size"]), int(config["min-nodes"]))
    initial = ArrayRecord([task.initial_model()])
    return strategy.start(grid, initial, num_rounds=int(config["num-rounds"]), evaluate_fn=evaluate)


def strategy_named(name: str, buffer_size: int, nodes: int) -> FedAvg:
    """FedBuff, or another for comparison.

    An update of ``fedavg`` waits for the slowest node; one of ``fedavg-quickest`` for the first ``buffer-size``
    replies, and leaves the others out; ``fedasync`` makes one of every reply.
    """
    if name == "fedbuff":
        return FedBuff(buffer_size, by_examples=True, fraction_evaluate=0.0, min_available_nodes=nodes)
    if name == "fedasync":
        return FedAsync(0.6, fraction_evaluate=0.0, min_available_nodes=nodes)
    if name == "fedavg":
        return FedAvg(fraction_evaluate=0.0, min_train_nodes=nodes, min_available_nodes=nodes)
    if name == "fedavg-quickest":
        return FedAvg(
            fraction_evaluate=0.0, min_train_nodes=nodes, min_available_nodes=nodes, min_replies=buffer_size, grace=0.0
        )
    raise ValueError(f"strategy must be 'fedbuff', 'fedasync', 'fedavg' or 'fedavg-quickest', not {name!r}")
