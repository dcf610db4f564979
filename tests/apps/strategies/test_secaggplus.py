"""Secure aggregation: the exact sum of those that are left, and a server that sees nothing but it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedq.apps.wire as wire
from fedq.apps.errors import InconsistentReply, StrategyError
from fedq.apps.secagg import keys, stages, vector
from fedq.apps.strategy import FedAvg, FedAvgM, FedMedian, NoUsableReplies, SecAggPlus
from tests.apps.strategies.scripted import plain, record
from tests.apps.strategies.watched import STAGES, Watched

# -- the sum -----------------------------------------------------------------------------------------------------------


def test_the_sum_is_that_of_the_quantised_updates_to_the_last_bit() -> None:
    watched = Watched(5)
    run = watched.execute()
    assert np.array_equal(watched.sums[0], watched.expected(range(5)))
    assert run.result.train_metrics_clientapp[1]["secagg-nodes"] == 5


@pytest.mark.parametrize("stage", STAGES)
def test_the_largest_tolerated_number_of_drop_outs_gives_the_exact_sum(stage: str) -> None:
    nodes = 7
    tolerated = Watched(nodes).strategy.tolerated_dropouts(nodes)
    assert tolerated == 2
    for gone in ((0, 1), (2, 6)):
        watched = Watched(nodes, dict.fromkeys(gone, stage))
        watched.execute()
        # Who drops out after its masked update has arrived is in the sum.
        left = range(nodes) if stage == stages.UNMASK else set(range(nodes)) - set(gone)
        assert np.array_equal(watched.sums[0], watched.expected(left))


@pytest.mark.parametrize("stage", [stages.SHARE, stages.COLLECT, stages.UNMASK])
def test_one_more_fails_with_words(stage: str) -> None:
    watched = Watched(7, dict.fromkeys((0, 3, 6), stage))
    with pytest.raises(NoUsableReplies, match=r"too many nodes have dropped out.*of 7 nodes 2 may drop out"):
        watched.execute()
    assert watched.sums == []
    (event,) = [event for event in watched.run.events if event.kind == "secagg-failed"]
    assert "too many nodes" in str(event.data["reason"])


def test_drop_outs_at_different_stages_count_together() -> None:
    watched = Watched(10, {1: stages.SHARE, 4: stages.COLLECT, 5: stages.UNMASK})
    assert watched.strategy.tolerated_dropouts(10) == 3
    watched.execute()
    assert np.array_equal(watched.sums[0], watched.expected(set(range(10)) - {1, 4}))


def with_few_neighbours(lost: int, stage: str) -> tuple[Watched, list[int]]:
    """A run in which 12 nodes share with 6 each, and so many of the neighbours of node-0 drop out: who they are."""
    watched, gone = Watched(12, num_neighbours=6), list[int]()
    drawn = watched.strategy._graph

    def graph(public: Any) -> dict[str, list[str]]:
        made = drawn(public)
        names = made["node-0"][:lost]
        watched.drops.update(dict.fromkeys(names, stage))
        gone.extend(int(name.removeprefix("node-")) for name in names)
        return made

    watched.strategy._graph = graph  # type: ignore[method-assign]
    return watched, gone


@pytest.mark.parametrize("stage", [stages.SHARE, stages.COLLECT, stages.UNMASK])
def test_with_few_neighbours_each_the_sum_is_exact_whichever_of_them_drop_out(stage: str) -> None:
    watched, gone = with_few_neighbours(2, stage)
    assert watched.strategy.tolerated_dropouts(12) == 2
    watched.execute()
    left = range(12) if stage == stages.UNMASK else set(range(12)) - set(gone)
    assert np.array_equal(watched.sums[0], watched.expected(left))


@pytest.mark.parametrize("stage", [stages.SHARE, stages.COLLECT, stages.UNMASK])
def test_with_few_neighbours_one_more_of_one_node_fails_with_words(stage: str) -> None:
    watched, _ = with_few_neighbours(3, stage)
    with pytest.raises(NoUsableReplies, match=r"too many nodes have dropped out.*of 12 nodes 2 may drop out"):
        watched.execute()
    assert watched.sums == []


def test_a_node_that_shares_with_few_is_tied_to_as_many_and_they_to_it() -> None:
    strategy = SecAggPlus(FedAvg(), num_neighbours=4)
    graph = strategy._graph({f"n{i}": stages.PublicKeys(b"", bytes([i])) for i in range(11)})
    assert {len(around) for around in graph.values()} == {4}
    assert all(node in graph[other] and node != other for node, around in graph.items() for other in around)


def test_the_average_is_that_of_fedavg_within_the_steps() -> None:
    watched = Watched(5)
    model = plain(watched.execute().result.arrays)
    total = sum(reply.examples for reply in watched.rounds[0])
    for name, array in model.items():
        mean = sum(reply.arrays[name].astype(float) * reply.examples for reply in watched.rounds[0]) / total
        assert array.dtype == np.float32
        assert np.allclose(array, mean, atol=1e-6)


def test_a_modulus_of_32_bits_halves_the_vectors_and_is_as_exact() -> None:
    watched = Watched(5, {2: stages.COLLECT}, modulus_bits=32, quantization_bits=20, max_weight=100)
    watched.execute()
    assert watched.sums[0].dtype == np.uint32
    assert np.array_equal(watched.sums[0], watched.expected({0, 1, 3, 4}))


def test_it_wraps_what_makes_something_of_the_average_and_nothing_else() -> None:
    SecAggPlus(FedAvgM())
    with pytest.raises(TypeError, match="no single reply"):
        SecAggPlus(FedMedian())


@pytest.mark.parametrize("where", STAGES[1:])
def test_killed_between_any_stages_with_a_drop_out_the_sum_is_the_same(where: str) -> None:
    whole = Watched(7, {2: stages.COLLECT})
    whole.execute()
    watched = Watched(7, {2: stages.COLLECT})
    ask_all, left = watched.strategy._ask, [where]

    def dying(stage: str, payloads: dict[str, Any]) -> Any:
        for reply in ask_all(stage, payloads):
            yield reply
            if stage in left:
                left.remove(stage)
                raise MemoryError("in the middle of a stage")

    watched.strategy._ask = dying  # type: ignore[method-assign]
    with pytest.raises(MemoryError):
        watched.execute()
    watched.execute()
    assert np.array_equal(watched.sums[0], whole.sums[0])
    assert watched.run.executions == whole.run.executions


# -- what the server holds ---------------------------------------------------------------------------------------------


def parts(watched: Watched, node: int) -> list[bytes]:
    """What would give a node's update away: its arrays, its integers, and pieces of them."""
    reply = watched.rounds[0][node]
    arrays = [array.tobytes() for array in reply.arrays.values() if array.ndim]
    whole = watched.quantized(node)
    return [*arrays, *(whole[at : at + 3].tobytes() for at in range(len(whole) - 2))]


@pytest.mark.parametrize("drops", [{}, {1: stages.COLLECT}, {1: stages.UNMASK, 2: stages.COLLECT}], ids=str)
def test_the_server_never_holds_an_unmasked_update(drops: dict[int, str]) -> None:
    watched = Watched(7, drops)
    run = watched.execute()
    secret = [piece for node in range(7) for piece in parts(watched, node)]
    held = [*watched.received, *run.checkpoints]
    assert len(watched.received) > 20
    for data, piece in itertools.product(held, secret):
        assert piece not in data
    # Nor is a masked vector the update of a node, whatever known vector is taken off.
    for masked, node in itertools.product(watched.masked, range(7)):
        assert not (masked == watched.quantized(node)).any()


def test_an_update_that_comes_too_late_stays_hidden_by_the_seed_of_its_node() -> None:
    """The server has the mask key of a node that dropped out; without its seed the vector stays noise."""
    watched = Watched(5, {1: stages.UNMASK})
    watched.execute()
    revealed = [data for data in watched.received if b"unmask" in data]
    assert len(revealed) == 4
    late = Watched(5, {1: stages.COLLECT})
    late.execute()
    for data in (data for data in late.received if b"unmask" in data):
        content = wire.decode(data)
        shares = stages.payload(content, stages.UNMASK, "strategy 1, round 1", stages.RevealedShares)
        assert "node-1" in shares.keys
        assert "node-1" not in shares.seeds
        assert not shares.keys.keys() & shares.seeds.keys()


def test_the_same_update_is_masked_anew_in_each_round() -> None:
    watched = Watched(4, rounds=2)
    watched.rounds[1] = watched.rounds[0]  # type: ignore[index]
    watched.execute()
    first, second = watched.masked[:4], watched.masked[4:]
    assert all(not np.array_equal(one, other) for one in first for other in second)


def test_secrets_are_gone_from_the_context_when_the_round_is_over() -> None:
    run = Watched(4).execute()
    assert all(stages.RECORD not in context.state for context in run.contexts.values())


def test_with_a_key_file_the_context_holds_no_secret_in_the_clear(tmp_path: Path) -> None:
    drawn: list[bytes] = []
    path = tmp_path / "key"
    path.write_bytes(bytes(range(32)))
    watched = Watched(4, dict.fromkeys(range(4), stages.UNMASK), node_config=lambda _: {"secagg-key-file": str(path)})
    fresh = keys.fresh_secret

    def noted() -> bytes:
        drawn.append(fresh())
        return drawn[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keys, "fresh_secret", noted)
        with pytest.raises(NoUsableReplies):
            watched.execute()
    assert len(drawn) == 12
    for context in watched.run.contexts.values():
        kept = context.state.config_records[stages.RECORD]["kept"]
        assert isinstance(kept, bytes)
        assert not any(secret in kept for secret in drawn)


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_a_weight_beyond_the_largest_is_refused_with_words() -> None:
    watched = Watched(4, max_weight=5)
    with pytest.raises(NoUsableReplies):
        watched.execute()
    assert any("max_weight" in reason for reason in watched.refusals)


def test_what_does_not_fit_the_modulus_is_said_before_anything_is_sent() -> None:
    watched = Watched(4, modulus_bits=32)
    with pytest.raises(StrategyError, match="lower max_weight or quantization_bits"):
        watched.execute()
    assert watched.run.messages == 0


def test_two_nodes_are_too_few() -> None:
    with pytest.raises(StrategyError, match="three nodes"):
        Watched(2).execute()


# -- the parts ---------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 6), st.integers(0, 3), st.binary(min_size=16, max_size=16), st.randoms())
def test_any_threshold_of_shares_gives_the_secret(threshold: int, more: int, secret: bytes, random: Any) -> None:
    shares = keys.split(secret, threshold, threshold + more)
    assert keys.combine(random.sample(shares, threshold)) == secret
    if threshold > 2:
        assert keys.combine(random.sample(shares, threshold - 1)) != secret


def test_what_is_sealed_for_one_does_not_open_for_another() -> None:
    place = "run 1, a to b"
    a, b, c = (keys.fresh_secret() for _ in range(3))
    sealed = keys.seal(keys.agreed(a, keys.public_key(b), place), b"share", place)
    assert keys.unseal(keys.agreed(b, keys.public_key(a), place), sealed, place) == b"share"
    for key, where in (
        (keys.agreed(c, keys.public_key(a), place), place),
        (keys.agreed(b, keys.public_key(a), place), "x"),
    ):
        with pytest.raises(InconsistentReply, match="does not open"):
            keys.unseal(key, sealed, where)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=8), st.integers(1, 1000))
def test_a_quantised_update_comes_back_within_half_a_step(values: list[float], weight: int) -> None:
    quantization = vector.Quantization(8.0, 24, 64)
    sent = record({"0": np.zeros(len(values))})
    vectors = quantization.quantized(sent, record({"0": np.array(values)}), weight)
    average, total = quantization.average(sent, vectors)
    assert total == weight
    step = 16.0 / (2**24 - 1)
    assert np.abs(plain(average)["0"] - np.clip(values, -8.0, 8.0)).max() <= step / 2 + 1e-12


def test_masks_of_a_pair_cancel_whatever_the_length() -> None:
    for size in (1, 131_072, 300_001):
        numbers = np.zeros(size, dtype="<u8")
        vector.add_mask(numbers, bytes(32), vector.pair_sign("a", "b"))
        assert np.unique(numbers[: min(size, 100)]).size == min(size, 100)
        vector.add_mask(numbers, bytes(32), vector.pair_sign("b", "a"))
        assert not numbers.any()
