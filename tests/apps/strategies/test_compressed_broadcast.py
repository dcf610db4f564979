"""The model goes down with fewer bytes, and the server's loses nothing by it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fedq.apps.wire as wire
from fedq.apps import Array, ArrayRecord, ClientApp, Context, Grid, Message, MetricRecord, RecordDict, ServerApp
from fedq.apps.array import COMPRESSED
from fedq.apps.mod import CompressionMod, fixedclipping_mod, secaggplus_mod
from fedq.apps.secagg import stages
from fedq.apps.strategy import (
    CompressedBroadcast,
    DifferentialPrivacyClientSideFixedClipping,
    FedAdam,
    FedAvg,
    FedBuff,
    FedMedian,
    FedXgbBagging,
    SecAggPlus,
    Strategy,
)
from fedq.apps.testing import Federation, FederationRun, Interrupted
from tests.apps.strategies.cases import replies, trees
from tests.apps.strategies.scripted import plain, record, scripted_app, single, trained

SIZE = 4000
NODES = 4
Precision = Any


def learning(seen: list[Message] | None = None, *mods: Any, step: float = 1.0) -> ClientApp:
    """Each node adds a step of its own to what it was sent."""
    app = ClientApp(mods=list(mods))

    def answer(message: Message, context: Context, learned: float) -> Message:
        if seen is not None:
            seen.append(message)
        part = int(context.node_config["partition-id"])  # type: ignore[arg-type]
        (array,) = message.content.array_records["arrays"].to_numpy_ndarrays()
        arrays = ArrayRecord([(array + learned * (1 + part)).astype(array.dtype)])
        content = {"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})}
        return Message(RecordDict(content), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return answer(message, context, step)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        if seen is not None:
            seen.append(message)
        return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1, "x": 1.0})}), reply_to=message)

    return app


def initial(dtype: str = "float32") -> ArrayRecord:
    return ArrayRecord([np.random.default_rng(3).standard_normal(SIZE).astype(dtype)])


def begun(make: Callable[[], Strategy], app: ClientApp, rounds: int = 2, dtype: str = "float32") -> FederationRun:
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        make().start(grid, initial(dtype), num_rounds=rounds)

    return Federation(NODES).begin(server, app)


def model(run: FederationRun) -> np.ndarray[Any, Any]:
    (array,) = run.result.arrays.to_numpy_ndarrays()
    return array


def sent_bytes(seen: list[Message]) -> list[int]:
    return [len(wire.encode(message.content).data) for message in seen]


# -- what goes down ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "share"), [("float16", 0.55), ("bfloat16", 0.55), (None, 1.01)])
def test_the_model_goes_down_in_fewer_bytes_to_train_and_to_evaluate(precision: Precision, share: float) -> None:
    small: list[Message] = []
    whole: list[Message] = []
    begun(lambda: CompressedBroadcast(FedAvg(), precision=precision), learning(small)).execute()
    begun(FedAvg, learning(whole)).execute()
    assert len(small) == len(whole) == 2 * 2 * NODES
    assert all(one <= share * other for one, other in zip(sent_bytes(small), sent_bytes(whole), strict=True))


def test_what_evaluates_a_round_is_what_the_next_one_trains_so_that_it_crosses_once() -> None:
    seen: list[Message] = []
    begun(lambda: CompressedBroadcast(FedAvg(), precision="float16"), learning(seen)).execute()
    arrays = [next(iter(message.content.array_records["arrays"].values())).data for message in seen]
    evaluated, trained_next = arrays[NODES : 2 * NODES], arrays[2 * NODES : 3 * NODES]
    assert len({*evaluated, *trained_next}) == 1


def test_a_node_reads_the_rounded_values_in_the_dtype_of_the_model() -> None:
    seen: list[Message] = []
    begun(lambda: CompressedBroadcast(FedAvg(), precision="bfloat16", zstd_level=3), learning(seen)).execute()
    array = seen[0].content.array_records["arrays"]["0"]
    assert array.stype == COMPRESSED
    expected = initial().to_numpy_ndarrays()[0].astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(array.numpy(), expected)
    assert array.numpy().dtype == np.float32


# -- what the server keeps ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
@pytest.mark.parametrize("strategy", [FedAvg, FedMedian, FedAdam])
def test_the_server_loses_nothing_by_the_rounding(strategy: Callable[..., Strategy], precision: Precision) -> None:
    # What each node learns does not depend on what it was sent, so that without loss the models are the same.
    make = lambda: CompressedBroadcast(strategy(fraction_evaluate=0.0), precision=precision)  # noqa: E731
    found = begun(make, learning(), rounds=4, dtype="float64").execute()
    expected = begun(lambda: strategy(fraction_evaluate=0.0), learning(), rounds=4, dtype="float64").execute()
    np.testing.assert_allclose(model(found), model(expected), rtol=0, atol=1e-9)


def test_steps_that_are_smaller_than_the_rounding_add_up() -> None:
    # Half a unit in the last place of float16 near 1024 is 0.5; each round moves by 0.05 on the mean.
    start, step = np.full(SIZE, 1024.0), 0.05
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = CompressedBroadcast(FedAvg(fraction_evaluate=0.0), precision="float16")
        strategy.start(grid, ArrayRecord([start]), num_rounds=30)

    run = Federation(NODES).run(server, learning(step=step))
    np.testing.assert_allclose(model(run), 1024.0 + 30 * step * 2.5, rtol=1e-12)


def test_a_value_beyond_float16_and_integers_travel_as_they_are() -> None:
    sent = {"large": np.full(500, 1e6, np.float32), "whole": np.arange(500)}
    found = trained(CompressedBroadcast(FedAvg(), precision="float16"), sent, scripted(sent))
    expected = trained(FedAvg(), sent, scripted(sent))
    for name, array in plain(found.result.arrays).items():
        np.testing.assert_array_equal(array, plain(expected.result.arrays)[name])


def scripted(arrays: dict[str, Any]) -> Any:
    from tests.apps.strategies.scripted import Reply

    return [[Reply({name: array + node for name, array in arrays.items()}) for node in range(NODES)]]


# -- with others -------------------------------------------------------------------------------------------------------


def test_replies_of_the_largest_elements_are_read_against_the_rounded_model() -> None:
    seen: list[Message] = []
    make = lambda: CompressedBroadcast(FedAvg(fraction_evaluate=0.0), precision="float16")  # noqa: E731
    found = begun(make, learning(seen, CompressionMod(top_k=1.0))).execute()
    np.testing.assert_allclose(model(found), initial().to_numpy_ndarrays()[0] + 2 * 2.5, atol=1e-5)


def test_clipping_at_the_nodes_is_that_of_the_update_to_what_they_were_sent() -> None:
    def make() -> Strategy:
        private = DifferentialPrivacyClientSideFixedClipping(FedAvg(fraction_evaluate=0.0), 0.0, 0.5, NODES)
        return CompressedBroadcast(private, precision="bfloat16")

    run = begun(make, learning(None, fixedclipping_mod), rounds=1, dtype="float64").execute()
    assert not [event for event in run.events if event.kind == "reply-failed"]
    moved = model(run) - initial("float64").to_numpy_ndarrays()[0]
    assert np.linalg.norm(moved) == pytest.approx(0.5, rel=1e-9)


def test_secure_aggregation_sums_updates_to_the_small_model() -> None:
    seen: list[Message] = []

    def watch(message: Message, context: Context, call_next: Any) -> Message:
        seen.append(message)
        reply: Message = call_next(message, context)
        return reply

    def make() -> Strategy:
        secure = SecAggPlus(FedAvg(fraction_evaluate=0.0), clipping_range=16.0)
        return CompressedBroadcast(secure, precision="float16")

    run = begun(make, learning(None, watch, secaggplus_mod)).execute()
    np.testing.assert_allclose(model(run), initial().to_numpy_ndarrays()[0] + 2 * 2.5, atol=1e-5)
    asked = [message for message in seen if message.content.config_records[stages.RECORD]["stage"] == stages.COLLECT]
    assert len(asked) == 2 * NODES
    assert {message.content.array_records["arrays"]["0"].stype for message in asked} == {COMPRESSED}


def test_why_a_secure_round_failed_is_told_through_it() -> None:
    def make() -> Strategy:
        secure = SecAggPlus(FedAvg(fraction_evaluate=0.0, max_failed_rounds=1), max_weight=1)
        return CompressedBroadcast(secure, precision="float16")

    run = begun(make, learning(None))  # without the mod
    with pytest.raises(Exception, match="nodes told their keys"):
        run.execute()


def test_trees_go_down_by_zstd_without_a_bit_changed() -> None:
    start, rounds = trees("uint8")
    found = trained(CompressedBroadcast(FedXgbBagging(), zstd_level=9), start, rounds)
    assert plain(found.result.arrays)["0"].tobytes() == (
        plain(trained(FedXgbBagging(), start, rounds).result.arrays)["0"].tobytes()
    )


# -- interrupted -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpoint", [1, 2])
def test_an_interrupted_run_ends_with_the_same_bits(checkpoint: int) -> None:
    start, rounds = replies("float32")
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = CompressedBroadcast(FedAdam(seed=5, fraction_train=0.6), precision="bfloat16", zstd_level=3)
        strategy.start(grid, record(start), num_rounds=3)

    whole = Federation(7).run(app, scripted_app(rounds))
    run = Federation(7).begin(app, scripted_app(rounds))
    with pytest.raises(Interrupted):
        run.execute(stop_after_checkpoint=checkpoint)
    run.execute()
    assert run.result == whole.result
    assert run.executions == whole.executions


def test_with_a_reply_budget_the_small_model_goes_down_and_the_bits_are_the_same() -> None:
    seen: list[Message] = []

    def make(**options: Any) -> Callable[[], Strategy]:
        return lambda: CompressedBroadcast(FedAvg(fraction_evaluate=0.0, **options), precision="float16")

    whole = begun(make(), learning()).execute()
    run = begun(make(reply_budget=int(2.5 * 4 * SIZE)), learning(seen)).execute()
    assert model(run).tobytes() == model(whole).tobytes()
    assert len(run.checkpoints) > len(whole.checkpoints)
    assert {message.content.array_records["arrays"]["0"].stype for message in seen} == {COMPRESSED}


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_it_is_the_outermost_wrapper_of_a_strategy_that_has_rounds() -> None:
    with pytest.raises(TypeError, match="not FedBuff"):
        CompressedBroadcast(FedBuff(3))
    with pytest.raises(TypeError, match="not CompressedBroadcast"):
        CompressedBroadcast(CompressedBroadcast(FedAvg()))
    with pytest.raises(TypeError, match="goes around DifferentialPrivacy"):
        DifferentialPrivacyClientSideFixedClipping(CompressedBroadcast(FedAvg()), 0.0, 1.0, 3)
    with pytest.raises(ValueError, match="precision must be"):
        CompressedBroadcast(FedAvg(), precision="int8")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="zstd_level must lie"):
        CompressedBroadcast(FedAvg(), zstd_level=0)


def test_an_array_that_does_not_become_smaller_is_sent_as_it_is() -> None:
    tiny = single(1.5)
    assert Array(tiny["0"]).nbytes < 20
    found = trained(CompressedBroadcast(FedAvg(), precision="float16", zstd_level=3), tiny, scripted(dict(tiny)))
    np.testing.assert_array_equal(found.models[0]["0"], [1.5 + 1.5])
