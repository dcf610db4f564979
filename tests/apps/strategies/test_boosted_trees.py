"""FedXgbBagging gathers the trees of all nodes, FedXgbCyclic lets one node after the other go on."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from fedq.apps import (
    Array,
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
from fedq.apps.array import COMPRESSED
from fedq.apps.compression import SPARSE
from fedq.apps.errors import InconsistentReply, StrategyError
from fedq.apps.strategy import CheckpointError, FedXgbBagging, FedXgbCyclic
from fedq.apps.strategy.boosted_trees import BoostedTrees
from fedq.apps.testing import Federation
from tests.apps.federations import averaging_app, training_app
from tests.apps.strategies.cases import tree_model
from tests.apps.strategies.scripted import Arrays, Reply, record, single, trained

NOTHING: Arrays = {"0": np.zeros(0, np.uint8)}


def read(model: Any) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(model["0"].tobytes())["learner"]["gradient_booster"]["model"]
    return parsed


def leaves(model: Any) -> list[float]:
    return [tree["base_weights"][0] for tree in read(model)["trees"]]


# -- bagging -----------------------------------------------------------------------------------------------------------


def test_the_new_trees_are_added_in_the_order_of_node_names() -> None:
    rounds = [[Reply(tree_model(1.0)), Reply(tree_model(2.0))], [Reply(tree_model(3.0)), Reply(tree_model(4.0))]]
    first, second = trained(FedXgbBagging(), NOTHING, rounds, order=[1, 0]).models
    assert leaves(first) == [1.0, 2.0]
    assert leaves(second) == [1.0, 2.0, 3.0, 4.0]
    model = read(second)
    assert [tree["id"] for tree in model["trees"]] == [0, 1, 2, 3]
    assert model["iteration_indptr"] == [0, 1, 2, 3, 4]
    assert model["tree_info"] == [0, 0, 0, 0]
    assert model["gbtree_model_param"]["num_trees"] == "4"


def test_all_rounds_and_classes_of_a_reply_are_added() -> None:
    sent = tree_model(0.1, 0.2, classes=[0, 1])
    several = Reply(tree_model(1.0, 2.0, 3.0, 4.0, classes=[0, 1]))
    (model,) = trained(FedXgbBagging(1.0, 0.0, min_train_nodes=1, min_available_nodes=1), sent, [[several]]).models
    assert leaves(model) == [0.1, 0.2, 1.0, 2.0, 3.0, 4.0]
    assert read(model)["tree_info"] == [0, 1, 0, 1, 0, 1]
    assert read(model)["iteration_indptr"] == [0, 2, 4, 6]
    assert [tree["id"] for tree in read(model)["trees"]] == list(range(6))


def test_a_first_model_of_one_node_is_taken_as_it_is() -> None:
    reply = tree_model(1.0)
    (model,) = trained(FedXgbBagging(), NOTHING, [[Reply(reply), Reply(single(1.0))]]).models
    assert model["0"].tobytes() == reply["0"].tobytes()


def broken(change: Any) -> Arrays:
    model = json.loads(tree_model(1.0)["0"].tobytes())
    change(model["learner"]["gradient_booster"]["model"])
    return {"0": np.frombuffer(json.dumps(model).encode(), np.uint8)}


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"0": np.frombuffer(b"{L\x00\x00", np.uint8)}, 'save_raw("json")'),
        ({"0": np.frombuffer(b"[" * 100_000, np.uint8)}, 'save_raw("json")'),
        ({"0": np.frombuffer(b'{"learner": {"gradient_booster": []}}', np.uint8)}, 'save_raw("json")'),
        (broken(lambda model: model["trees"].clear()), "contradicts itself"),
        (broken(lambda model: model.update(iteration_indptr=[0, 7])), "contradicts itself"),
        (tree_model(1.0, features=9), "has 9 features, the one that was sent has 3"),
        ({**tree_model(1.0), "1": np.zeros(1)}, "2 arrays instead of one"),
    ],
)
def test_a_reply_that_is_no_model_counts_as_failed(arrays: Arrays, reason: str) -> None:
    found = trained(FedXgbBagging(), tree_model(0.5), [[Reply(arrays), Reply(tree_model(1.0))]])
    assert leaves(found.models[0]) == [0.5, 1.0]
    (failed,) = [event.data for event in found.run.events if event.kind == "reply-failed"]
    assert reason in str(failed["reason"])


@pytest.mark.parametrize(
    ("features", "left", "reason"),
    [
        ((9, 3, 3), [2.0, 3.0], "has 9 features, the one that others are added to has 3"),
        ((9, 3), [1.0], "has 3 features, the one that others are added to has 9"),
    ],
)
def test_where_no_model_was_sent_the_number_of_features_is_that_of_most_replies(
    features: tuple[int, ...], left: list[float], reason: str
) -> None:
    replies = [
        Reply(tree_model(float(node), features=count), metrics={"loss": float(node)})
        for node, count in enumerate(features, start=1)
    ]
    for order in (range(len(replies)), reversed(range(len(replies)))):
        found = trained(FedXgbBagging(), NOTHING, [replies], order=list(order))
        assert leaves(found.models[0]) == left
        (failed,) = [event.data for event in found.run.events if event.kind == "reply-failed"]
        assert reason in str(failed["reason"])
        assert found.result.train_metrics_clientapp[1]["loss"] == sum(left) / len(left)


def test_a_model_of_several_arrays_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(StrategyError, match="needs one array with the model, not 2"):
        trained(FedXgbBagging(), {"0": np.zeros(1), "1": np.zeros(1)}, [[Reply(NOTHING)] * 2])


def test_an_error_of_reading_names_what_is_wrong() -> None:
    with pytest.raises(InconsistentReply, match=r"booster 'gbtree' in JSON.*KeyError"):
        BoostedTrees(b"{}")


# -- cyclic ------------------------------------------------------------------------------------------------------------


def test_one_node_after_the_other_goes_on_with_the_model() -> None:
    rounds = [[Reply(single(float(10 * r + node))) for node in range(3)] for r in range(5)]
    found = trained(FedXgbCyclic(), single(0.0), rounds)
    assert [model["0"][0] for model in found.models] == [0.0, 11.0, 22.0, 30.0, 41.0]
    asked = [(m.metadata.message_type, m.metadata.dst_node_id) for m in found.run.asked.values()]
    names = ["node-0", "node-1", "node-2", "node-0", "node-1"]
    assert asked == [(kind, name) for name in names for kind in ("train", "evaluate")]


def test_the_model_may_grow() -> None:
    rounds = [[Reply(single(*([1.0] * (r + node)))) for node in (1, 2)] for r in range(2)]
    assert [model["0"].size for model in trained(FedXgbCyclic(), single(), rounds).models] == [1, 3]


@pytest.mark.parametrize("stype", ["numpy.ndarray", COMPRESSED, SPARSE, "mine"])
def test_bytes_that_should_be_an_array_and_are_none_do_not_become_the_model(stype: str) -> None:
    client, server, results = ClientApp(), ServerApp(), []

    @client.train()
    def train(message: Message, context: Context) -> Message:
        arrays = ArrayRecord({"0": Array("uint8", (4,), stype, b"junk")})
        content = RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})})
        return Message(content, reply_to=message)

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = FedXgbCyclic(fraction_evaluate=0.0, max_failed_rounds=None)
        results.append(strategy.start(grid, record(single(1.0)), num_rounds=1).arrays["0"])

    run = Federation(2).run(server, client)
    failed = [event for event in run.events if event.kind == "reply-failed"]
    assert (len(failed), results[0].stype) == ((0, "mine") if stype == "mine" else (1, "numpy.ndarray"))


def test_a_node_that_comes_later_goes_to_the_end() -> None:
    federation = Federation(["b", "c", "d"], offline=["b"])
    federation.at(0.0, lambda: None)
    calls: list[str] = []

    def on_message(message: Any) -> None:
        calls.append(message.metadata.dst_node_id)
        federation.set_online("b", True)

    federation.on_message = on_message
    strategy = lambda: FedXgbCyclic(fraction_evaluate=0.0, on_offline="fail")  # noqa: E731
    federation.run(averaging_app(strategy, rounds=4), training_app())
    assert calls == ["c", "d", "b", "c"]


def test_neither_trains_nor_evaluates_at_fraction_zero() -> None:
    found = trained(FedXgbCyclic(fraction_train=0.0, fraction_evaluate=0.0), single(1.0), [[Reply(single(2.0))] * 2])
    assert found.run.messages == 0
    assert found.models[0]["0"] == [1.0]


def test_a_share_of_the_nodes_is_refused() -> None:
    with pytest.raises(ValueError, match="fraction_train must be 0 or 1"):
        FedXgbCyclic(fraction_train=0.5)


def test_a_damaged_order_is_refused() -> None:
    with pytest.raises(CheckpointError, match="no order of the nodes"):
        FedXgbCyclic().load_state(RecordDict({"cycle": ConfigRecord({"order": "a"})}))
    with pytest.raises(CheckpointError, match="no order of the nodes"):
        FedXgbCyclic().load_state(RecordDict({"cycle": ArrayRecord()}))
