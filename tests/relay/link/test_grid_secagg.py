"""Secure aggregation over Redis: killed after any call it ends with the same sum, and no key holds an update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fedq.apps import ArrayRecord, ClientApp, Context, Grid, Message, MetricRecord, RecordDict, ServerApp
from fedq.apps.mod import secaggplus_mod
from fedq.apps.strategy import FedAvg, Result, SecAggPlus
from fedq.relay.connection import Relay
from tests.relay.link.conftest import Setting
from tests.relay.link.killing import ended

NODES = ("a", "bb", "ccc")
client_app = ClientApp(mods=[secaggplus_mod])
server_app = ServerApp()


def update(node: str) -> list[np.ndarray[Any, Any]]:
    """Long enough to travel as an object of its own."""
    return [np.linspace(0.0, len(node), 3000), np.full(3, 1.0 / len(node))]


@client_app.train()
def train(message: Message, context: Context) -> Message:
    old = message.content.array_records["arrays"].to_numpy_ndarrays()
    arrays = ArrayRecord([array + step for array, step in zip(old, update(context.node_id), strict=True)])
    metrics = MetricRecord({"num-examples": len(context.node_id)})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


@server_app.main()
def main(grid: Grid, context: Context) -> Result:
    strategy = SecAggPlus(FedAvg(fraction_evaluate=0.0, min_train_nodes=3, min_available_nodes=3), threshold=0.99)
    return strategy.start(grid, ArrayRecord([np.zeros(3000), np.ones(3)]), num_rounds=1)


def test_secure_aggregation_killed_after_any_call_ends_with_the_same_bits(setting: Setting) -> None:
    for name in NODES:
        setting.node(name, client_app)
    whole = ended(setting, server_app)
    weights = [len(name) for name in NODES]
    mean = sum(update(name)[0] * len(name) for name in NODES) / sum(weights)
    assert np.allclose(np.frombuffer(whole.arrays[0]), mean, atol=1e-8)
    assert [(told["train"], told["replies"]) for told in whole.rounds] == [({"secagg-nodes": 3.0}, 3)]
    assert whole.calls > 10
    for after in range(1, whole.calls):
        assert ended(setting, server_app, after).same(whole), f"killed after call {after} of {whole.calls}"


def everything(relay: Relay) -> bytes:
    """All values of all keys of the server, as they were written."""
    redis: Any = relay.redis
    readers: dict[bytes, Callable[[Any], Any]] = {
        b"string": lambda key: [redis.get(key) or b""],
        b"hash": lambda key: redis.hgetall(key).values(),
        b"stream": lambda key: [value for _, fields in redis.xrange(key) for value in fields.values()],
    }
    values = []
    for key in redis.scan_iter("*"):
        if (read := readers.get(redis.type(key))) is not None:
            values += [bytes(value) for value in read(key)]
    return b"|".join(values)


def seen_by(setting: Setting, app: ServerApp, node_app: ClientApp) -> set[bytes]:
    """The pieces of updates that lay in any key after any step of the ServerApp."""
    for name in NODES:
        setting.node(name, node_app)
    pieces = {update(name)[0][1000:1004].tobytes() for name in NODES}
    found: set[bytes] = set()
    grid = setting.grid()
    step = grid.relay.call

    def call(*args: Any) -> list[Any]:
        reply = step(*args)
        held = everything(setting.relay)
        found.update(piece for piece in pieces if piece in held)
        return reply

    grid.relay.call = call  # type: ignore[method-assign]
    try:
        app(grid, grid.context)
    finally:
        grid.relay.call = step  # type: ignore[method-assign]
    return found


def test_no_key_of_the_server_ever_holds_an_update(setting: Setting) -> None:
    assert seen_by(setting, server_app, client_app) == set()


def test_without_secure_aggregation_the_same_look_finds_them_all(setting: Setting) -> None:
    bare, plain = ServerApp(), ClientApp()
    plain.train()(train)

    @bare.main()
    def main(grid: Grid, context: Context) -> Result:
        strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=3, min_available_nodes=3)
        return strategy.start(grid, ArrayRecord([np.zeros(3000), np.ones(3)]), num_rounds=1)

    assert len(seen_by(setting, bare, plain)) == 3
