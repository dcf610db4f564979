"""What the server does: average the nodes' models, test the average, and compare it with models trained alone."""

from __future__ import annotations

import math
from typing import cast

from digits import task
from fedq.apps import ArrayRecord, ConfigRecord, Context, Grid, Message, MetricRecord, RecordDict, ServerApp
from fedq.apps.strategy import FedAvg, Result

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> Result:
    """Train for ``num-rounds`` rounds; then ask every node for a model of its own."""
    config = context.run_config
    seed, rounds, nodes = int(config["seed"]), int(config["num-rounds"]), int(config["min-nodes"])
    examples = task.test_data(seed)
    initial = ArrayRecord(task.initial_model(int(config["hidden"]), seed))

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        loss, accuracy = task.evaluate(arrays.to_numpy_ndarrays(), examples)
        return MetricRecord({"loss": loss, "accuracy": accuracy})

    strategy = FedAvg(min_train_nodes=nodes, min_evaluate_nodes=nodes, min_available_nodes=nodes)
    result = strategy.start(grid, initial, num_rounds=rounds, evaluate_fn=evaluate)

    alone = mean_of_models_trained_alone(grid, context, initial, examples)
    if alone is not None:
        result.evaluate_metrics_serverapp[rounds]["alone-accuracy-mean"] = alone
    return result


def mean_of_models_trained_alone(
    grid: Grid, context: Context, initial: ArrayRecord, examples: task.Examples
) -> float | None:
    """The mean test accuracy of models that each node trains by itself, for as many epochs; None without any."""
    known = context.state.metric_records.get("alone")  # found there if the run was interrupted behind this point
    if known is None:
        content = RecordDict({"arrays": initial, "config": ConfigRecord()})
        replies = grid.stream(
            [Message(content, node, "train.alone", group_id="alone") for node in grid.get_node_ids()], timeout=600
        )
        accuracies = [
            task.evaluate(reply.content.array_records["arrays"].to_numpy_ndarrays(), examples)[1]
            for reply in replies
            if not reply.has_error()
        ]
        if not accuracies:
            return None
        known = MetricRecord({"accuracy-mean": math.fsum(accuracies) / len(accuracies), "nodes": len(accuracies)})
        context.state["alone"] = known
        grid.emit("metric", {"name": "alone-accuracy-mean", "value": cast(float, known["accuracy-mean"])})
        context.save(folded=replies.message_ids)
    return cast(float, known["accuracy-mean"])
