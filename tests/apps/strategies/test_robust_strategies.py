"""FedMedian, FedTrimmedAvg, Krum, MultiKrum and Bulyan follow their papers, and an attacker does not get through."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedq.apps import RecordDict
from fedq.apps.errors import StrategyError
from fedq.apps.strategy import (
    Bulyan,
    FedAvg,
    FedMedian,
    FedTrimmedAvg,
    Krum,
    MultiKrum,
    NoUsableReplies,
)
from fedq.apps.strategy.gathering import Gathering
from fedq.apps.strategy.krum_scores import krum_scores, lowest, lowest_repeatedly
from tests.apps.strategies.scripted import Reply, single, trained


def model_of(strategy: FedAvg, vectors: Any, examples: list[int] | None = None, **metrics: list[float]) -> Any:
    """The model that one round makes of these vectors, one per node."""
    examples = examples or [1] * len(vectors)
    replies = [
        Reply(single(*vector), examples[node], {name: values[node] for name, values in metrics.items()})
        for node, vector in enumerate(vectors)
    ]
    found = trained(strategy, single(*([0.0] * len(vectors[0]))), [replies])
    return found.models[0]["0"], found.result.train_metrics_clientapp.get(1)


# -- median and trimmed mean -------------------------------------------------------------------------------------------


def test_the_median_is_taken_coordinate_by_coordinate() -> None:
    # Yin et al. 2018, definition 1.
    model, _ = model_of(FedMedian(), [[1.0, 9.0], [2.0, -5.0], [100.0, 3.0]], examples=[1, 50, 7])
    np.testing.assert_array_equal(model, [2.0, 3.0])


def test_the_median_of_an_even_number_is_the_mean_of_the_middle_two() -> None:
    model, _ = model_of(FedMedian(), [[1.0], [2.0], [4.0], [1000.0]])
    np.testing.assert_array_equal(model, [3.0])


def test_the_trimmed_mean_leaves_out_as_many_at_either_end() -> None:
    # Yin et al. 2018, definition 2, with beta * n = 1.
    vectors = [[1.0, 5.0], [2.0, 5.5], [3.0, -80.0], [7.0, 5.0], [900.0, 6.0]]
    model, _ = model_of(FedTrimmedAvg(beta=0.2), vectors, examples=[9, 1, 1, 1, 1])
    np.testing.assert_allclose(model, [(2.0 + 3.0 + 7.0) / 3, (5.0 + 5.0 + 5.5) / 3], rtol=1e-15)


def test_a_trimmed_mean_that_cuts_off_nothing_is_the_plain_mean() -> None:
    model, _ = model_of(FedTrimmedAvg(beta=0.0), [[1.0], [2.0], [6.0]], examples=[100, 1, 1])
    np.testing.assert_array_equal(model, [3.0])


@pytest.mark.parametrize("beta", [-0.1, 0.5])
def test_a_share_that_leaves_nothing_is_refused(beta: float) -> None:
    with pytest.raises(ValueError, match="beta must be"):
        FedTrimmedAvg(beta=beta)


# -- Krum --------------------------------------------------------------------------------------------------------------

# Squared distances from a: b 1, c 4, d 16, e 10000; from b: c 1, d 9, e 9801; from c: d 4, e 9604; from d: e 9216.
LINE = [[0.0], [1.0], [2.0], [4.0], [100.0]]


def test_the_score_is_the_sum_of_the_squared_distances_to_the_nearest() -> None:
    # Blanchard et al. 2017, section 4: n - f - 2 = 2 neighbours.
    points = np.array(LINE)[:, 0]
    scores = krum_scores((points[:, None] - points[None, :]) ** 2, malicious=1)
    np.testing.assert_array_equal(scores, [1 + 4, 1 + 1, 1 + 4, 4 + 9, 9216 + 9604])


def test_krum_takes_the_reply_of_the_lowest_score_as_it_is() -> None:
    model, metrics = model_of(
        Krum(num_malicious_nodes=1), LINE, examples=[1, 3, 1, 1, 99], loss=[1.0, 2.0, 3.0, 4.0, 5]
    )
    np.testing.assert_array_equal(model, [1.0])
    assert dict(metrics) == {"loss": 2.0}


def test_krum_changes_no_bit_of_the_reply_that_it_takes() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((5, 40)) / 3
    model, _ = model_of(Krum(num_malicious_nodes=1), vectors, examples=[3, 7, 11, 13, 17])
    assert any(model.tobytes() == vector.tobytes() for vector in vectors)


def test_multi_krum_averages_those_of_the_lowest_scores() -> None:
    strategy = MultiKrum(num_malicious_nodes=1, num_nodes_to_select=3)
    model, metrics = model_of(strategy, LINE, examples=[1, 1, 2, 50, 50], loss=[1.0, 1.0, 5.0, 90.0, 90.0])
    np.testing.assert_allclose(model, [(0.0 + 1.0 + 2 * 2.0) / 4], rtol=1e-15)
    assert dict(metrics) == {"loss": 3.0}


def test_a_reply_whose_weight_takes_it_beyond_float64_counts_as_failed_and_not_as_the_end_of_the_run() -> None:
    replies = [Reply(single(1.0)), Reply(single(2.0)), Reply(single(1e305), 10**6)]
    found = trained(MultiKrum(num_nodes_to_select=3), single(0.0), [replies])
    np.testing.assert_array_equal(found.models[0]["0"], [1.5])
    (failed,) = [event.data for event in found.run.events if event.kind == "reply-failed"]
    assert failed["node"] == "node-2"
    assert "times its weight 1e+06 is beyond the range of float64" in str(failed["reason"])
    # One alone has no weight.
    assert trained(Krum(), single(0.0), [[replies[2]] * 3]).models[0]["0"] == [1e305]


def test_of_equal_scores_the_node_whose_name_comes_first_is_chosen() -> None:
    assert lowest(np.array([2.0, 1.0, 1.0, 1.0]), 2) == [1, 2]
    for order in itertools.permutations(range(3)):
        replies = [Reply(single(float(node))) for node in range(3)]
        (model,) = trained(Krum(), single(0.0), [replies], order=order).models
        np.testing.assert_array_equal(model["0"], [0.0])


def test_too_few_replies_for_the_guarantee_are_told(caplog: pytest.LogCaptureFixture) -> None:
    model_of(Krum(num_malicious_nodes=1), LINE)
    assert "too few" not in caplog.text
    model_of(Krum(num_malicious_nodes=2), LINE)
    assert "5 replies are too few to withstand 2 malicious nodes: more than 6 are needed" in caplog.text


# -- Bulyan ------------------------------------------------------------------------------------------------------------


def bulyan(vectors: NDArray[Any], f: int, *, repeated: bool) -> NDArray[Any]:
    """El Mhamdi et al. 2018, section 4, in loops."""
    n = len(vectors)

    def scores(left: list[int]) -> list[float]:
        nearest = max(1, len(left) - f - 2)
        squared = {(a, b): float(((vectors[a] - vectors[b]) ** 2).sum()) for a in left for b in left}
        return [sum(sorted(squared[a, b] for b in left if b != a)[:nearest]) for a in left]

    left, selected = list(range(n)), list[int]()
    if repeated:
        while len(selected) < n - 2 * f:
            now = scores(left)
            selected.append(left.pop(now.index(min(now))))
    else:
        now = scores(left)
        selected = sorted(left, key=lambda a: now[a])[: n - 2 * f]
    columns = []
    for column in vectors[selected].T:
        middle = float(np.median(column))
        columns.append(np.mean(sorted(column, key=lambda value: abs(value - middle))[: n - 4 * f]))
    return np.array(columns)


@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize(("n", "f"), [(3, 0), (7, 1), (9, 1), (11, 2), (12, 2)])
def test_bulyan_is_the_mean_around_the_median_of_those_selected(n: int, f: int, repeated: bool) -> None:
    vectors = np.random.default_rng(n).standard_normal((n, 6))
    model, _ = model_of(Bulyan(num_malicious_nodes=f, repeated_selection=repeated), vectors)
    np.testing.assert_allclose(model, bulyan(vectors, f, repeated=repeated), rtol=1e-12)


def test_choosing_again_and_again_differs_from_choosing_at_once() -> None:
    points = np.array([0.0, 0.1, 0.2, 5.0, 5.1, 9.0, 30.0])
    distances = (points[:, None] - points[None, :]) ** 2
    at_once = set(lowest(krum_scores(distances, 1), 5))
    assert at_once == {0, 1, 2, 3, 4}
    assert set(lowest_repeatedly(distances, 1, 7)) == set(range(7))
    assert lowest_repeatedly(distances, 1, 3) != lowest(krum_scores(distances, 1), 3)


def test_bulyan_with_too_few_replies_keeps_the_model(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(NoUsableReplies, match="Bulyan could not make a model of those it had"):
        model_of(Bulyan(num_malicious_nodes=1, max_failed_rounds=1), LINE)
    assert "Bulyan needs 7" in caplog.text


def test_bulyan_selects_by_a_rule_of_the_app() -> None:
    given: list[tuple[int, int, int]] = []

    def smallest(contents: list[RecordDict], malicious: int, number: int) -> list[RecordDict]:
        given.append((len(contents), malicious, number))
        return sorted(contents, key=lambda content: float(content.array_records["arrays"]["0"].numpy()[0]))[:number]

    vectors = [[float(k)] for k in (6, 5, 4, 3, 2, 1, 0)]
    model, metrics = model_of(
        Bulyan(num_malicious_nodes=1, selection_rule=smallest), vectors, loss=[6, 5, 4, 3, 2, 1, 0]
    )
    np.testing.assert_array_equal(model, [2.0])  # of 0 to 4 the three around 2
    assert dict(metrics) == {"loss": 2.0}
    assert given == [(7, 1, 5)]

    with pytest.raises(StrategyError, match="returned 1 contents, 0 of them of those it was given"):
        model_of(Bulyan(num_malicious_nodes=1, selection_rule=lambda *_: [RecordDict()]), vectors)
    with pytest.raises(ValueError, match="decides for itself"):
        Bulyan(selection_rule=smallest, repeated_selection=True)


# -- all ---------------------------------------------------------------------------------------------------------------

ROBUST = [
    FedMedian,
    lambda: FedTrimmedAvg(beta=0.2),
    lambda: Krum(num_malicious_nodes=1),
    lambda: MultiKrum(num_malicious_nodes=1, num_nodes_to_select=3),
    lambda: Bulyan(num_malicious_nodes=1),
    lambda: Bulyan(num_malicious_nodes=1, repeated_selection=True),
]


@pytest.mark.parametrize("make", ROBUST, ids=["median", "trimmed", "krum", "multikrum", "bulyan", "bulyan repeated"])
@pytest.mark.parametrize("attack", [1e3, -1e300, 1e308])
def test_one_attacker_among_seven_moves_the_model_no_further_than_the_honest_differ(make: Any, attack: float) -> None:
    honest = np.random.default_rng(5).uniform(-1.0, 1.0, (6, 8))
    model, _ = model_of(make(), [*honest, np.full(8, attack)], examples=[1, 1, 1, 1, 1, 1, 10**6])
    assert (model >= honest.min(axis=0)).all()
    assert (model <= honest.max(axis=0)).all()


@pytest.mark.parametrize("make", ROBUST, ids=["median", "trimmed", "krum", "multikrum", "bulyan", "bulyan repeated"])
def test_replies_on_disk_give_the_same_bits_as_replies_in_memory(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedq.apps.strategy import reply_store

    vectors = np.random.default_rng(9).standard_normal((9, 1000))
    expected, _ = model_of(make(), vectors)
    strategy: Gathering = make()
    strategy.memory_limit = 0
    np.testing.assert_array_equal(model_of(strategy, vectors)[0], expected)
    monkeypatch.setattr(reply_store, "_BLOCK_BYTES", 16 * 9 * 7)  # 7 columns at a time
    np.testing.assert_allclose(model_of(strategy, vectors)[0], expected, rtol=1e-12)
