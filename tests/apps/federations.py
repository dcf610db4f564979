"""Small apps that tests share: each node moves the model towards a point of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fedq.apps import ArrayRecord, ClientApp, Context, Grid, Message, MetricRecord, RecordDict, ServerApp
from fedq.apps.strategy import FedAvg, Result

Change = Callable[[RecordDict, Context], RecordDict | None]


def point(partition: int, size: int = 5) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(partition).standard_normal(size).astype(np.float32)


def training_app(change: Change | None = None) -> ClientApp:
    """Nodes with ``partition-id`` p have p + 1 examples. `change` may replace the content of a training reply."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        (model,) = message.content.array_records["arrays"].to_numpy_ndarrays()
        model += np.float32(0.5) * (point(partition, model.size) - model)
        steps = context.state.metric_records.get("steps", MetricRecord({"count": 0}))
        context.state["steps"] = MetricRecord({"count": int(steps["count"]) + 1})  # type: ignore[arg-type]
        content = RecordDict(
            {
                "arrays": ArrayRecord([model]),
                "metrics": MetricRecord({"loss": float(np.abs(model).sum()), "num-examples": partition + 1}),
            }
        )
        return Message((change and change(content, context)) or content, reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        (model,) = message.content.array_records["arrays"].to_numpy_ndarrays()
        metrics = MetricRecord(
            {"norm": float(np.linalg.norm(model)), "num-examples": int(context.node_config["partition-id"]) + 1}
        )
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def averaging_app(strategy: Callable[[], FedAvg] = FedAvg, rounds: int = 3, **options: Any) -> ServerApp:
    """A ServerApp that starts a strategy, made anew each time, from zeros. Options go to `Strategy.start`."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> Result:
        return strategy().start(grid, ArrayRecord([np.zeros(5, dtype=np.float32)]), num_rounds=rounds, **options)

    return app


def model_of(result: Result) -> np.ndarray[Any, Any]:
    (model,) = result.arrays.to_numpy_ndarrays()
    return model
