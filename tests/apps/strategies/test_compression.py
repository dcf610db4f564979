"""Compressed replies: fewer bytes on the wire, whole arrays at the strategy, nothing lost but what was rounded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedq.apps import Array, ArrayRecord, ClientApp, Context, Grid, Message, MetricRecord, RecordDict, ServerApp
from fedq.apps.array import COMPRESSED
from fedq.apps.compression import SPARSE, compressed, densified, sparse
from fedq.apps.mod import ClippingMod, CompressionMod
from fedq.apps.strategy import FedAvg, FedMedian, Krum, Strategy
from fedq.apps.testing import Federation, FederationRun, Interrupted, ask

SIZE = 20_000


def update(node: int, number: int) -> Mapping[str, Any]:
    rng = np.random.default_rng([node, number])
    return {"weight": rng.standard_normal((SIZE // 10, 10)).astype(np.float32), "steps": np.arange(4) + node}


def client_app(*mods: Any) -> ClientApp:
    app = ClientApp(mods=list(mods))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        number = int(message.content.config_records["config"]["server-round"])  # type: ignore[arg-type]
        change = update(int(context.node_config["partition-id"]), number)  # type: ignore[arg-type]
        sent = message.content.array_records["arrays"]
        arrays = {name: Array(array.numpy() + change[name]) for name, array in sent.items()}
        metrics = MetricRecord({"num-examples": 2})
        return Message(RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=message)

    return app


def begun(mods: Any = (), strategy: type[Strategy] = FedAvg, rounds: int = 2, **options: Any) -> FederationRun:
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        initial = {"weight": Array(np.zeros((SIZE // 10, 10), np.float32)), "steps": Array(np.zeros(4, np.int64))}
        strategy(fraction_evaluate=0.0, **options).start(grid, ArrayRecord(initial), num_rounds=rounds)  # type: ignore[call-arg]

    return Federation(4).begin(app, client_app(*mods))


def model(run: FederationRun) -> dict[str, np.ndarray[Any, Any]]:
    return {name: array.numpy() for name, array in run.result.arrays.items()}


def on_the_wire(run: FederationRun) -> int:
    """Bytes of the replies, encoded as they travel."""
    total, answer = 0, run.answer

    def counting(message_id: str, answered: Any) -> None:
        nonlocal total
        total += len(answered)
        answer(message_id, answered)

    run.answer = counting  # type: ignore[method-assign]
    run.execute()
    return total


@pytest.mark.parametrize(
    ("options", "share"),
    [
        ({"precision": "float16"}, 0.5),
        ({"precision": "bfloat16"}, 0.5),
        ({"precision": "bfloat16", "zstd_level": 3}, 0.48),
        ({"zstd_level": 3}, 0.96),
        ({"top_k": 0.05}, 0.11),
        ({"top_k": 0.05, "precision": "float16", "zstd_level": 3}, 0.07),
    ],
    ids=str,
)
def test_fewer_bytes_are_on_the_wire(options: dict[str, Any], share: float) -> None:
    whole = on_the_wire(begun())
    assert on_the_wire(begun([CompressionMod(**options)])) < (share + 0.01) * whole


@pytest.mark.parametrize("strategy", [FedAvg, FedMedian, Krum])
@pytest.mark.parametrize("precision", ["float16", "bfloat16", None])
def test_any_strategy_gets_whole_arrays_of_their_own_dtype(strategy: type[Strategy], precision: Any) -> None:
    options = {"num_malicious_nodes": 1} if strategy is Krum else {}
    plain = model(begun(strategy=strategy, **options).execute())
    mods = [CompressionMod(precision=precision, zstd_level=3)]
    small = model(begun(mods, strategy=strategy, **options).execute())
    for name, array in small.items():
        assert array.dtype == plain[name].dtype
        assert np.allclose(array, plain[name], atol=0.0 if precision is None else 0.1)


def test_zstd_alone_changes_no_bit() -> None:
    small, plain = (model(begun(mods).execute()) for mods in ([CompressionMod(zstd_level=9)], []))
    assert all(small[name].tobytes() == array.tobytes() for name, array in plain.items())


@pytest.mark.parametrize("strategy", [FedAvg, FedMedian])
def test_all_of_top_k_is_the_whole_update(strategy: type[Strategy]) -> None:
    small, plain = (model(begun(mods, strategy=strategy).execute()) for mods in ([CompressionMod(top_k=1.0)], []))
    for name, array in plain.items():
        assert np.allclose(small[name], array, atol=1e-6)


def test_what_top_k_leaves_out_comes_later() -> None:
    """What has been sent and what is still kept are together what was learned."""
    rounds = 4
    run = begun([CompressionMod(top_k=0.1)], rounds=rounds).execute()
    learned = sum(update(node, number)["weight"] for node in range(4) for number in range(1, rounds + 1)) / 4
    left = sum(
        context.state.array_records["fedq.compression"]["arrays/weight"].numpy() for context in run.contexts.values()
    )
    assert np.allclose(model(run)["weight"].reshape(-1) + left / 4, learned.reshape(-1), atol=1e-4)
    assert np.abs(left).max() > 0.1


@pytest.mark.parametrize("options", [{"top_k": 0.2}, {"precision": "float16", "zstd_level": 3}], ids=str)
def test_an_owners_clipping_outside_of_it_holds_for_what_was_compressed(options: dict[str, Any]) -> None:
    run = begun([ClippingMod(1.5), CompressionMod(**options)], rounds=1).execute()
    moved = np.sqrt(sum(float((array.astype(float) ** 2).sum()) for array in model(run).values()))
    assert 0.0 < moved <= 1.5


def test_an_interrupted_run_with_top_k_ends_with_the_same_bits() -> None:
    whole = begun([CompressionMod(top_k=0.1, precision="bfloat16")]).execute()
    run = begun([CompressionMod(top_k=0.1, precision="bfloat16")])
    with pytest.raises(Interrupted):
        run.execute(stop_after_checkpoint=1)
    run.execute()
    assert run.executions == whole.executions
    assert all(array.tobytes() == model(whole)[name].tobytes() for name, array in model(run).items())


def test_a_value_beyond_float16_keeps_its_array_as_it_is() -> None:
    array = Array(np.array([1e6, 1.0] * 100, np.float32))
    assert np.array_equal(compressed(array, precision="float16", zstd_level=3).numpy(), array.numpy())


def test_what_does_not_become_smaller_stays_an_ordinary_array() -> None:
    array = Array(np.frombuffer(np.random.default_rng(1).bytes(1000), np.uint8))
    assert compressed(array, zstd_level=3) is array


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 400), st.sampled_from(["<f4", ">f8", "<i2", "|b1", "<c8"]), st.integers(1, 9))
def test_zstd_gives_back_every_dtype(size: int, dtype: str, level: int) -> None:
    values = (np.arange(size) % 3).astype(dtype)
    back = compressed(Array(values), zstd_level=level).numpy()
    assert back.dtype == values.dtype
    assert np.array_equal(back, values)


def test_the_way_down_may_be_compressed_too() -> None:
    seen: list[str] = []
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        array = message.content.array_records["arrays"]["0"]
        seen.append(array.stype)
        return Message(RecordDict({"arrays": ArrayRecord([array.numpy() + 1.0])}), reply_to=message)

    small = ArrayRecord({"0": compressed(Array(np.ones(5000)), precision="float16")})
    reply = ask(app, RecordDict({"arrays": small}))
    assert seen == [COMPRESSED]
    assert np.array_equal(reply.content.array_records["arrays"]["0"].numpy(), np.full(5000, 2.0))


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=60))
def test_damaged_data_is_a_value_error(data: bytes) -> None:
    good = compressed(Array(np.zeros(2000)), zstd_level=3).data
    for content in (data, good[: len(good) // 2] + data):
        with pytest.raises(ValueError, match=r"compressed|long"):
            Array("float64", (2000,), COMPRESSED, content).numpy()
        with pytest.raises(ValueError, match=r"compressed|sparse"):
            densified(Array(np.zeros(2000)), Array("float64", (2000,), SPARSE, content))


def test_a_few_bytes_cannot_ask_for_all_memory() -> None:
    data = compressed(Array(np.zeros(2000)), zstd_level=3).data
    with pytest.raises(ValueError, match="too much to be meant"):
        Array("float64", (10**12,), COMPRESSED, data).numpy()


def test_a_sparse_array_does_not_fit_another_model() -> None:
    base = Array(np.zeros(10))
    made, _ = sparse(base, np.ones(10), np.array([2, 5]), precision=None, zstd_level=None)
    assert np.array_equal(densified(base, made).numpy(), np.isin(np.arange(10), [2, 5]))
    with pytest.raises(ValueError, match="another model"):
        densified(Array(np.ones(10)), made)
