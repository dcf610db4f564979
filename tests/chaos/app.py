"""An app whose result tells of every execution: one too many, one too few or one out of order changes its bits.

The node's Context counts executions and keeps an array that each one changes; both go into the reply. The next
parameters are the exact mean of the replies, so that they do not depend on the order in which these came.
"""

from __future__ import annotations

import time
import zlib

import numpy as np

from fedq.apps import (
    ArrayRecord,
    ClientApp,
    ConfigRecord,
    Context,
    Grid,
    Message,
    MetricRecord,
    RecordDict,
    ServerApp,
)
from fedq.apps.strategy import FedAvg

SIZE = 1500
"""Values of the parameters: 12 KB, so that arrays travel as objects."""

client_app = ClientApp()
server_app = ServerApp()


@client_app.train()
def train(message: Message, context: Context) -> Message:
    weights = message.content.array_records["arrays"].to_numpy_ndarrays()[0]
    state = context.state
    memory = state.array_records["memory"].to_numpy_ndarrays()[0] if "memory" in state else np.zeros(SIZE)
    count = int(state.metric_records["count"]["executions"]) + 1 if "count" in state else 1  # type: ignore[arg-type]
    memory = 0.5 * memory + weights
    time.sleep(float(context.run_config["delay"]))
    noise = np.random.default_rng([zlib.crc32(context.node_id.encode()), count]).standard_normal(SIZE)
    weights = 0.7 * weights + 0.2 * noise + 0.1 * memory
    state["memory"] = ArrayRecord([memory])
    state["count"] = MetricRecord({"executions": count})
    metrics = MetricRecord({"num-examples": 1 + int(context.node_config["partition-id"]), "executions": count})
    return Message(RecordDict({"arrays": ArrayRecord([weights]), "metrics": metrics}), reply_to=message)


def counted(replies: list[RecordDict], weighted_by_key: str) -> MetricRecord:
    """How many replies a round had, and the lowest and highest number of executions among their nodes."""
    counts = [int(reply.metric_records["metrics"]["executions"]) for reply in replies]  # type: ignore[arg-type]
    return MetricRecord({"replies": len(counts), "lowest": min(counts), "highest": max(counts)})


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    nodes = int(config["nodes"])
    strategy = FedAvg(
        fraction_evaluate=0.0,
        min_train_nodes=nodes,
        min_available_nodes=nodes,
        train_metrics_aggr_fn=counted,
        node_timeout=600.0,
    )
    strategy.start(
        grid,
        ArrayRecord([np.zeros(SIZE)]),
        num_rounds=int(config["num-rounds"]),
        timeout=3600.0,
        train_config=ConfigRecord(),
    )
