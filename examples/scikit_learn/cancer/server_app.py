"""What the server does: learn the scale of the features from sums, then average the nodes' coefficients."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from cancer import task
from fedq.apps import ArrayRecord, ConfigRecord, Context, Grid, Message, MetricRecord, RecordDict, ServerApp
from fedq.apps.strategy import FedAvg, Result

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> Result:
    """Ask for statistics, then train for ``num-rounds`` rounds."""
    config = context.run_config
    nodes, seed = int(config["min-nodes"]), int(config["seed"])
    scale = scale_of_features(grid, context, nodes)
    mean, deviation = np.array(scale["mean"]), np.array(scale["deviation"])
    features, labels = task.test_data(seed)
    examples = (features - mean) / deviation, labels

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        loss, accuracy = task.evaluate(examples, *arrays.to_numpy_ndarrays())
        return MetricRecord({"loss": loss, "accuracy": accuracy})

    strategy = FedAvg(min_train_nodes=nodes, min_evaluate_nodes=nodes, min_available_nodes=nodes)
    return strategy.start(
        grid,
        ArrayRecord([np.zeros((1, task.FEATURES)), np.zeros(1)]),
        num_rounds=int(config["num-rounds"]),
        train_config=ConfigRecord(dict(scale)),
        evaluate_config=ConfigRecord(dict(scale)),
        evaluate_fn=evaluate,
    )


def scale_of_features(grid: Grid, context: Context, nodes: int) -> ConfigRecord:
    """Mean and standard deviation of each feature over the examples of all nodes.

    They are kept in the Context, where a ServerApp that was interrupted finds them again.
    """
    known = context.state.config_records.get("scale")
    if known is not None:
        return known
    names = grid.wait_for_nodes(nodes, timeout=600)
    replies = grid.stream([Message(RecordDict(), name, "query.statistics") for name in names], timeout=600)
    told: list[Any] = [reply.content.metric_records["statistics"] for reply in replies if not reply.has_error()]
    count = sum(int(part["count"]) for part in told)
    if not count:
        raise RuntimeError("no node has told the statistics of its features")
    # math.fsum does not depend on the order in which the replies came.
    mean = [math.fsum(column) / count for column in zip(*(part["sum"] for part in told), strict=True)]
    squares = [math.fsum(column) / count for column in zip(*(part["squares"] for part in told), strict=True)]
    deviation = [math.sqrt(max(square - m * m, 1e-12)) for square, m in zip(squares, mean, strict=True)]
    context.state["scale"] = ConfigRecord({"mean": mean, "deviation": deviation})
    context.save(folded=replies.message_ids)
    return context.state.config_records["scale"]
