"""Nodes whose replies a test writes down, so that it knows what a strategy is given in each round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedq.apps import Array, ArrayRecord, ClientApp, Context, Grid, Message, MetricRecord, RecordDict, ServerApp
from fedq.apps.strategy import Result, Strategy
from fedq.apps.testing import Federation, FederationRun

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Reply:
    """What a node gives back: arrays, the number of its examples and further metrics."""

    arrays: Arrays
    examples: int = 1
    metrics: Mapping[str, float] = field(default_factory=dict)


Rounds = Sequence[Sequence[Reply]]


def single(*values: float, dtype: str = "float64") -> Arrays:
    """A model of one vector."""
    return {"0": np.array(values, dtype=dtype)}


def record(arrays: Arrays) -> ArrayRecord:
    return ArrayRecord({name: Array(array) for name, array in arrays.items()})


def plain(arrays: ArrayRecord) -> dict[str, NDArray[Any]]:
    return {name: array.numpy() for name, array in arrays.items()}


def scripted_app(rounds: Rounds, mods: Sequence[Any] = ()) -> ClientApp:
    """In round r the node with ``partition-id`` p gives ``rounds[r - 1][p]``."""
    app = ClientApp(mods=list(mods))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        number = message.content.config_records["config"]["server-round"]
        reply = rounds[int(number) - 1][int(context.node_config["partition-id"])]  # type: ignore[arg-type]
        metrics = MetricRecord({"num-examples": reply.examples, **reply.metrics})
        return Message(RecordDict({"arrays": record(reply.arrays), "metrics": metrics}), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1})}), reply_to=message)

    return app


@dataclass
class Trained:
    """The models after each round, and the run."""

    models: list[dict[str, NDArray[Any]]]
    run: FederationRun

    @property
    def result(self) -> Result:
        return self.run.result


def trained(
    strategy: Strategy,
    initial: Arrays,
    rounds: Rounds,
    *,
    order: Sequence[int] | None = None,
    mods: Sequence[Any] = (),
    together: bool = False,
) -> Trained:
    """Let a strategy have these replies. `order` is that of their arrival, by node; node p is ``node-<p>``.

    `together`: they arrive so close to each other that no node has answered twice before all have answered once.
    """
    models: list[dict[str, NDArray[Any]]] = []
    nodes = len(rounds[0])
    names = [f"node-{number:0{len(str(nodes - 1))}d}" for number in range(nodes)]
    first, step = (1.0, 1.0 / nodes) if together else (0.0, 1.0)
    delays = {names[node]: first + place * step for place, node in enumerate(order or range(nodes))}
    app = ServerApp()

    def keep(server_round: int, arrays: ArrayRecord) -> None:
        if server_round:
            models.append(plain(arrays))

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        strategy.start(grid, record(initial), num_rounds=len(rounds), evaluate_fn=keep)

    run = Federation(names, delays=delays).run(app, scripted_app(rounds, mods))
    return Trained(models, run)
