"""The wrappers say which epsilon their rounds have spent, and it is the one that the mechanism really costs."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import dp_accounting
import numpy as np
import pytest
from dp_accounting import rdp
from scipy import optimize, stats

from fedq.apps import Context, RecordDict
from fedq.apps.extras import MissingExtra
from fedq.apps.mod import LocalDpMod
from fedq.apps.strategy import (
    CheckpointError,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedMedian,
    PrivacyAccountant,
)
from fedq.apps.testing import Federation, Interrupted
from tests.apps.federations import averaging_app, training_app
from tests.apps.strategies.scripted import Reply, single, trained

START, REPLY = single(1.0, 1.0), single(4.0, 5.0)


def fixed(strategy: Any = None, noise: float = 2.0, **more: Any) -> DifferentialPrivacyServerSideFixedClipping:
    return DifferentialPrivacyServerSideFixedClipping(strategy or FedAvg(), noise, 1.0, 2, noise_seed=1, **more)


def gaussian(noise_multiplier: float, rounds: int, delta: float = 1e-5) -> float:
    """What the library says of rounds that everybody takes part in."""
    accountant = rdp.RdpAccountant(neighboring_relation=dp_accounting.NeighboringRelation.REPLACE_SPECIAL)
    accountant.compose(dp_accounting.GaussianDpEvent(noise_multiplier), rounds)
    return float(accountant.get_epsilon(delta))


def exact(noise_multiplier: float, rounds: int, delta: float) -> float:
    """The smallest epsilon of the Gaussian mechanism: B. Balle, Y. Wang, "Improving the Gaussian Mechanism for
    Differential Privacy", 2018, theorem 8, for rounds together a Gaussian of noise_multiplier / sqrt(rounds)."""
    z = noise_multiplier / math.sqrt(rounds)

    def excess(epsilon: float) -> float:
        first = stats.norm.cdf(1 / (2 * z) - epsilon * z)
        return float(first - math.exp(epsilon) * stats.norm.cdf(-1 / (2 * z) - epsilon * z) - delta)

    return float(optimize.brentq(excess, 0.0, 100.0))


# -- the accountant ----------------------------------------------------------------------------------------------------


def test_nothing_is_spent_before_the_first_round() -> None:
    assert (PrivacyAccountant().epsilon, PrivacyAccountant().rounds) == (0.0, 0)


@pytest.mark.parametrize(("noise", "rounds"), [(1.0, 1), (4.0, 10), (20.0, 200)])
def test_it_gives_the_librarys_number_a_little_above_the_exact_one(noise: float, rounds: int) -> None:
    accountant = PrivacyAccountant(1e-6)
    accountant.add(noise, count=rounds)
    assert accountant.epsilon == pytest.approx(gaussian(noise, rounds, 1e-6), rel=1e-12)
    best = exact(noise, rounds, 1e-6)
    assert best <= accountant.epsilon <= 1.2 * best


def test_any_other_data_in_place_of_a_nodes_own_costs_what_half_of_the_noise_costs() -> None:
    accountant = PrivacyAccountant(neighbours="replace")
    accountant.add(4.0, count=3)
    assert accountant.epsilon == pytest.approx(gaussian(2.0, 3), rel=1e-12)


def test_a_sample_makes_rounds_cheaper_only_when_it_is_secret() -> None:
    told, secret = PrivacyAccountant(), PrivacyAccountant(secret_sample=True)
    for accountant in (told, secret):
        accountant.add(4.0, sample=10, nodes=1000, count=50)
    library = rdp.RdpAccountant(neighboring_relation=dp_accounting.NeighboringRelation.REPLACE_ONE)
    event = dp_accounting.SampledWithoutReplacementDpEvent(1000, 10, dp_accounting.GaussianDpEvent(2.0))
    library.compose(event, 50)
    assert told.epsilon == pytest.approx(gaussian(4.0, 50), rel=1e-12)
    assert secret.epsilon == pytest.approx(float(library.get_epsilon(1e-5)), rel=1e-12)
    assert secret.epsilon < told.epsilon / 2


def test_a_large_sample_costs_no_more_than_all_nodes() -> None:
    accountant = PrivacyAccountant(secret_sample=True)
    accountant.add(4.0, sample=9, nodes=10)
    assert accountant.epsilon == pytest.approx(gaussian(4.0, 1), rel=1e-12)


def test_its_state_is_text_and_comes_back() -> None:
    accountant = PrivacyAccountant(secret_sample=True)
    accountant.add(1.5, sample=3, nodes=30, count=4)
    accountant.add(2.5)
    again = PrivacyAccountant(secret_sample=True)
    again.state = accountant.state
    assert (again.epsilon, again.rounds) == (pytest.approx(accountant.epsilon, rel=1e-12), 5)


def test_arguments_are_checked() -> None:
    for delta in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="delta must lie"):
            PrivacyAccountant(delta)
    with pytest.raises(ValueError, match="neighbours must be"):
        PrivacyAccountant(neighbours="add")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="above 0"):
        PrivacyAccountant().add(0.0)
    with pytest.raises(ValueError, match="cannot be drawn"):
        PrivacyAccountant().add(1.0, sample=3, nodes=2)


# -- in a strategy -----------------------------------------------------------------------------------------------------


def test_each_round_tells_what_was_spent_so_far() -> None:
    found = trained(fixed(), START, [[Reply(REPLY), Reply(REPLY)]] * 3)
    metrics = found.run.result.train_metrics_clientapp
    assert [metrics[at]["epsilon"] for at in (1, 2, 3)] == pytest.approx([gaussian(2.0, n) for n in (1, 2, 3)])
    rounds = [event.data["train"] for event in found.run.events if event.kind == "round"]
    assert [told["epsilon"] for told in rounds] == pytest.approx([gaussian(2.0, n) for n in (1, 2, 3)])


def test_adaptive_clipping_accounts_for_arrays_and_count_together() -> None:
    adaptive = DifferentialPrivacyServerSideAdaptiveClipping(FedAdam(), 0.5, 100, noise_seed=1)
    assert adaptive.noise_multiplier > 0.5
    trained(adaptive, START, [[Reply(REPLY), Reply(REPLY)]] * 2)
    assert adaptive.epsilon == pytest.approx(gaussian(0.5, 2))
    # Two Gaussians of these multipliers on the same data are one of the multiplier asked for.
    accountant = rdp.RdpAccountant(neighboring_relation=dp_accounting.NeighboringRelation.REPLACE_SPECIAL)
    arrays = dp_accounting.GaussianDpEvent(adaptive.noise_multiplier)
    count = dp_accounting.GaussianDpEvent(2.0 * adaptive.clipped_count_stddev)
    accountant.compose(dp_accounting.ComposedDpEvent([arrays, count]), 2)
    assert adaptive.epsilon == pytest.approx(float(accountant.get_epsilon(1e-5)))


@pytest.mark.parametrize("weights", [(1, 1), (1, 3)])
def test_a_sample_counts_as_one_when_all_answer_with_equal_weights(weights: tuple[int, int]) -> None:
    accountant = PrivacyAccountant(secret_sample=True)
    strategy = fixed(FedAvg(fraction_train=0.2, fraction_evaluate=0.0), noise=20.0, accountant=accountant)
    left = list(weights)

    def weigh(content: RecordDict, context: Context) -> None:
        content.metric_records["metrics"]["num-examples"] = left.pop()

    Federation(nodes=10).run(averaging_app(lambda: strategy, rounds=1), training_app(weigh))  # type: ignore[arg-type, return-value]
    assert json.loads(accountant.state) == ([[20.0, 2, 10, 1]] if weights == (1, 1) else [[20.0, 1, 1, 1]])


def test_a_secret_sample_does_not_follow_from_the_run() -> None:
    def sampled(secret: bool) -> set[tuple[str, ...]]:
        drawn = set()
        for _ in range(4):
            accountant = PrivacyAccountant(secret_sample=secret)
            strategy = fixed(FedAvg(fraction_train=0.2, fraction_evaluate=0.0), noise=20.0, accountant=accountant)
            asked: list[str] = []

            def note(content: RecordDict, context: Context, asked: list[str] = asked) -> None:
                asked.append(context.node_id)

            Federation(nodes=40).run(averaging_app(lambda: strategy, rounds=1), training_app(note))  # type: ignore[arg-type, return-value] # noqa: B023
            drawn.add(tuple(sorted(asked)))
        return drawn

    assert len(sampled(False)) == 1
    assert len(sampled(True)) == 4


def test_a_round_that_releases_nothing_costs_nothing() -> None:
    strategy = fixed()
    found = trained(strategy, START, [[Reply(single(np.nan, 1.0))] * 2, [Reply(REPLY), Reply(REPLY)]])
    assert strategy.epsilon == pytest.approx(gaussian(2.0, 1))
    assert "epsilon" not in found.run.result.train_metrics_clientapp.get(1, {})


def test_where_there_is_no_epsilon_none_is_told() -> None:
    assert fixed(noise=0.0).epsilon is None
    assert fixed(FedMedian()).epsilon is None
    assert fixed(accountant=False).epsilon is None
    for strategy, noise in ((FedMedian(), 1.0), (FedAvg(), 0.0)):
        with pytest.raises(ValueError, match="no epsilon to account for"):
            fixed(strategy, noise, accountant=PrivacyAccountant())


def test_without_the_library_it_is_missed_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PrivacyAccountant, "available", staticmethod(lambda: False))
    assert fixed().epsilon is None
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(MissingExtra, match=r"pip install 'fedq\[dp\]'"):
        PrivacyAccountant()


def test_the_account_survives_the_serverapp() -> None:
    made: list[DifferentialPrivacyServerSideFixedClipping] = []

    def strategy() -> Any:
        made.append(fixed(FedAvg(fraction_evaluate=0.0)))
        return made[-1]

    run = Federation(2).begin(averaging_app(strategy, rounds=4), training_app())
    with pytest.raises(Interrupted):
        run.execute(stop_after_checkpoint=3)
    run.execute()
    assert len(made) == 2
    assert made[1].epsilon == pytest.approx(gaussian(2.0, 4))
    assert run.result.train_metrics_clientapp[4]["epsilon"] == made[1].epsilon


def test_a_checkpoint_without_an_account_is_not_continued_as_if_nothing_was_spent() -> None:
    without = fixed(accountant=False).save_state()
    with pytest.raises(CheckpointError, match="holds no account of the rounds before it"):
        fixed().load_state(without)


def test_a_node_can_tell_what_its_replies_have_cost() -> None:
    mod = LocalDpMod(1.0, 2.0, 0.5, 1e-6)
    assert mod.spent(10, delta=1e-5) == pytest.approx(gaussian(mod.deviation / 2.0, 10))
    assert mod.spent(1, delta=1e-6) < 0.5
    assert mod.spent(0, delta=1e-6) == 0.0
