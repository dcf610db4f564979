"""The wrappers clip, add the noise that their papers ask for, and let the clipping norm follow its quantile."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from fedq.apps import ArrayRecord, Context, Error, Grid, Message, MetricRecord, ServerApp
from fedq.apps.errors import StrategyError
from fedq.apps.mod import adaptiveclipping_mod, fixedclipping_mod
from fedq.apps.strategy import (
    CheckpointError,
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
)
from fedq.apps.testing import Federation, Interrupted
from tests.apps.federations import averaging_app, model_of, training_app
from tests.apps.strategies.scripted import Reply, record, scripted_app, single, trained

START = single(1.0, 1.0)
# Updates of norm 5 and 0.5.
LONG, SHORT = single(4.0, 5.0), single(1.3, 1.4)


def fixed(strategy: FedAvg | None = None, noise: float = 0.0, norm: float = 1.0, nodes: int = 2, **more: Any) -> Any:
    return DifferentialPrivacyServerSideFixedClipping(strategy or FedAvg(), noise, norm, nodes, **more)


def failed(found: Any) -> list[str]:
    return [str(event.data["reason"]) for event in found.run.events if event.kind == "reply-failed"]


# -- clipping ----------------------------------------------------------------------------------------------------------


def test_longer_updates_are_scaled_to_the_norm_and_shorter_ones_stay() -> None:
    # McMahan et al. 2017, section 3 (flat clipping): 5 becomes 1, 0.5 stays.
    (model,) = trained(fixed(), START, [[Reply(LONG), Reply(SHORT)]]).models
    np.testing.assert_allclose(model["0"], 1.0 + (np.array([0.6, 0.8]) + np.array([0.3, 0.4])) / 2, rtol=1e-12)


def test_the_norm_is_that_of_all_arrays_together() -> None:
    sent = {"a": np.zeros(2), "b": np.zeros((1, 1))}
    reply = Reply({"a": np.array([2.0, 1.0]), "b": np.array([[2.0]])})
    (model,) = trained(fixed(), sent, [[reply, reply]]).models
    np.testing.assert_allclose(model["a"], [2 / 3, 1 / 3], rtol=1e-12)
    np.testing.assert_allclose(model["b"], [[2 / 3]], rtol=1e-12)


def test_an_update_of_nothing_and_one_beyond_all_bounds_are_clipped_too() -> None:
    (model,) = trained(fixed(), START, [[Reply(START), Reply(single(1e308, -1e308))]]).models
    assert np.isfinite(model["0"]).all()
    assert float(np.linalg.norm(model["0"] - START["0"])) <= 0.5


def test_clipping_at_the_nodes_gives_what_clipping_at_the_server_gives() -> None:
    rounds = [[Reply(LONG), Reply(SHORT, 3)], [Reply(SHORT), Reply(LONG, 3)]]
    at_nodes = DifferentialPrivacyClientSideFixedClipping(FedAvg(), 0.0, 1.0, 2)
    found = trained(at_nodes, START, rounds, mods=[fixedclipping_mod])
    for one, other in zip(found.models, trained(fixed(), START, rounds).models, strict=True):
        np.testing.assert_array_equal(one["0"], other["0"])


def test_a_node_that_does_not_clip_counts_as_failed() -> None:
    at_nodes = DifferentialPrivacyClientSideFixedClipping(FedAvg(), 0.0, 1.0, 2)
    found = trained(at_nodes, START, [[Reply(LONG), Reply(SHORT)]])
    np.testing.assert_array_equal(found.models[0]["0"], SHORT["0"])
    assert failed(found) == [
        "its update has the norm 5, beyond the clipping norm 1: put fixedclipping_mod around the training function of "
        "the ClientApp"
    ]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_an_update_that_is_longer_by_rounding_alone_is_let_through(dtype: str) -> None:
    rng = np.random.default_rng(3)
    sent = {"0": (rng.standard_normal(2000) * 50).astype(dtype)}
    replies = [Reply({"0": (sent["0"] + rng.standard_normal(2000)).astype(dtype)}) for _ in range(3)]
    at_nodes = DifferentialPrivacyClientSideFixedClipping(FedAvg(), 0.0, 0.01, 3)
    assert failed(trained(at_nodes, sent, [replies], mods=[fixedclipping_mod])) == []


# -- noise -------------------------------------------------------------------------------------------------------------


def deviation_of(strategy: Any, examples: list[int]) -> float:
    """The standard deviation of what is added to a model of 40,000 numbers that no reply changes."""
    zeros = {"0": np.zeros(40_000)}
    (model,) = trained(strategy, zeros, [[Reply(zeros, count) for count in examples]]).models
    assert abs(model["0"].mean()) < 0.05 * model["0"].std()
    return float(model["0"].std())


def test_with_equal_weights_the_noise_is_that_of_mcmahan_et_al_2017() -> None:
    # sigma = z * S / n
    assert deviation_of(fixed(noise=0.5, norm=3.0, nodes=4), [7, 7, 7, 7]) == pytest.approx(0.5 * 3.0 / 4, rel=0.02)


def test_with_other_weights_the_noise_hides_the_node_that_counts_most() -> None:
    assert deviation_of(fixed(noise=0.5, norm=3.0, nodes=4), [1, 1, 2, 4]) == pytest.approx(0.5 * 3.0 / 2, rel=0.02)


def test_the_noise_is_never_less_than_for_the_nodes_that_were_to_be_asked() -> None:
    assert deviation_of(fixed(noise=0.5, norm=3.0, nodes=2), [1, 1, 1, 1]) == pytest.approx(0.5 * 3.0 / 2, rel=0.02)


def test_a_reply_that_failed_does_not_make_the_noise_smaller() -> None:
    zeros = {"0": np.zeros(40_000)}
    broken = {"0": np.full(40_000, np.nan)}
    replies = [Reply(zeros), Reply(zeros), Reply(broken), Reply(zeros, metrics={"loss": math.inf})]
    found = trained(fixed(noise=1.0, nodes=4), zeros, [replies])
    assert len(failed(found)) == 2
    assert float(found.models[0]["0"].std()) == pytest.approx(1.0 / 2, rel=0.02)


def test_optimizers_at_the_server_work_on_the_noised_average() -> None:
    rounds = [[Reply(LONG), Reply(SHORT)]] * 3
    strategy = fixed(FedAdam(eta=0.5), noise=0.5, noise_seed=1)
    found = trained(strategy, START, rounds)
    x, m, v = START["0"].copy(), np.zeros(2), np.zeros(2)
    for number, model in enumerate(found.models, start=1):
        clipped = [x + (reply["0"] - x) * min(1.0, 1.0 / np.linalg.norm(reply["0"] - x)) for reply in (LONG, SHORT)]
        noise = strategy.generator(number, 0).normal(0.0, 0.25, 2)
        delta = (clipped[0] + clipped[1]) / 2 + noise - x
        m, v = 0.9 * m + 0.1 * delta, 0.99 * v + 0.01 * delta**2
        rate = 0.5 * math.sqrt(1 - 0.99 ** (number + 1)) / (1 - 0.9 ** (number + 1))
        x = x + rate * m / (np.sqrt(v) + 1e-3)
        np.testing.assert_allclose(model["0"], x, rtol=1e-9)


def test_a_strategy_that_does_not_average_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    fixed(FedAvgM(server_momentum=0.5))
    assert caplog.text == ""
    strategy = fixed(FedMedian(), noise=1.0, noise_seed=2)
    assert "the result of FedMedian, which is no average" in caplog.text
    (model,) = trained(strategy, START, [[Reply(SHORT)] * 2]).models
    np.testing.assert_allclose(model["0"], SHORT["0"] + strategy.generator(1, 0).normal(0.0, 0.5, 2), rtol=1e-12)


def test_the_seed_is_secret_unless_it_is_given() -> None:
    models = [trained(fixed(noise=1.0), START, [[Reply(SHORT)] * 2]).models[0]["0"] for _ in range(2)]
    assert (models[0] != models[1]).all()


def test_each_round_and_each_purpose_has_noise_of_its_own() -> None:
    strategy = fixed(noise_seed=5)
    drawn = {float(strategy.generator(number, purpose).normal()) for number in range(1, 9) for purpose in range(2)}
    assert len(drawn) == 16


def test_a_wrapper_that_is_started_twice_in_a_run_has_other_noise_the_second_time() -> None:
    # Else the difference of the two models would be without noise.
    models: list[Any] = []
    app, zeros = ServerApp(), {"0": np.zeros(3)}

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = fixed(noise=1.0)
        for _ in range(2):
            result = strategy.start(grid, record(zeros), num_rounds=1)
            models.append(result.arrays["0"].numpy())

    Federation(2).run(app, scripted_app([[Reply(zeros)] * 2]))
    assert (models[0] != models[1]).all()


# -- the adaptive norm -------------------------------------------------------------------------------------------------


def adaptive(noise: float = 0.0, nodes: int = 4, **more: Any) -> Any:
    arguments = {"initial_clipping_norm": 1.0, "target_clipped_quantile": 0.5, "clip_norm_lr": 0.2, **more}
    return DifferentialPrivacyServerSideAdaptiveClipping(FedAvg(), noise, nodes, **arguments)


def test_the_norm_moves_as_in_andrew_et_al_2019_algorithm_1() -> None:
    # Three of four updates are within the norm: C = C * exp(-eta * (3/4 - gamma)), where gamma, the share which is to
    # be within it, is 1 - target_clipped_quantile.
    strategy = adaptive(target_clipped_quantile=0.4)
    trained(strategy, START, [[Reply(LONG), Reply(SHORT), Reply(SHORT), Reply(START)]])
    assert strategy.clipping_norm == pytest.approx(math.exp(-0.2 * (0.75 - 0.6)), rel=1e-12)


@pytest.mark.parametrize("first", [0.01, 100.0])
def test_the_norm_comes_to_the_quantile_wherever_it_begins(first: float) -> None:
    # Updates of the norms 1, 2, 3, ..., 9, always from zero: half of them are longer than 5.
    replies = [Reply(single(float(length))) for length in range(1, 10)]

    class Still(FedAvg):
        def update(self, server_round: int, average: ArrayRecord) -> ArrayRecord:
            return self.sent

    strategy = DifferentialPrivacyServerSideAdaptiveClipping(Still(), 0.0, 9, first, 0.5, 0.5)
    trained(strategy, single(0.0), [replies] * 40)
    assert 4.0 < strategy.clipping_norm < 6.0


def test_at_the_nodes_the_norm_moves_in_the_same_way_and_the_bits_are_no_metric() -> None:
    at_nodes = DifferentialPrivacyClientSideAdaptiveClipping(FedAvg(), 0.0, 4, 1.0)
    rounds = [[Reply(LONG), Reply(SHORT), Reply(START), Reply(SHORT, 3, {"loss": 1.0})]] * 3
    found = trained(at_nodes, START, rounds, mods=[adaptiveclipping_mod])
    at_server = adaptive()
    other = trained(at_server, START, rounds)
    assert at_nodes.clipping_norm == at_server.clipping_norm != 1.0
    assert found.result == other.result
    assert dict(found.result.train_metrics_clientapp[1]) == {"loss": 1.0}


def test_a_reply_that_does_not_say_whether_it_was_clipped_counts_as_failed() -> None:
    at_nodes = DifferentialPrivacyClientSideAdaptiveClipping(FedAvg(), 0.0, 2, 1.0)
    found = trained(at_nodes, START, [[Reply(SHORT, metrics={"norm_bit": 1}), Reply(SHORT)]])
    assert failed(found) == [
        "it has no metric 'norm_bit' of 0 or 1: put adaptiveclipping_mod around the training function of the ClientApp"
    ]
    assert at_nodes.clipping_norm == pytest.approx(math.exp(0.2 * 0.5))


def test_the_noise_is_made_for_the_norm_that_clipped() -> None:
    zeros = {"0": np.zeros(40_000)}
    strategy = adaptive(noise=0.1, nodes=4, clip_norm_lr=3.0, clipped_count_stddev=1.0, noise_seed=3)
    (model,) = trained(strategy, zeros, [[Reply(zeros)] * 4]).models
    assert float(model["0"].std()) == pytest.approx(strategy.noise_multiplier * 1.0 / 4, rel=0.02)
    assert strategy.clipping_norm < 0.6


def test_arrays_and_count_together_cost_what_the_multiplier_says() -> None:
    # Andrew et al. 2019, theorem 1: z_delta = (z^-2 - (2 sigma_b)^-2)^-1/2, sigma_b = n / 20 by default.
    strategy = adaptive(noise=0.5, nodes=20)
    assert strategy.clipped_count_stddev == 1.0
    assert strategy.noise_multiplier == pytest.approx((0.5**-2 - 2.0**-2) ** -0.5, rel=1e-12)
    assert strategy.noise_multiplier**-2 + (2 * strategy.clipped_count_stddev) ** -2 == pytest.approx(0.5**-2)
    with pytest.raises(ValueError, match=r"too small for a noise_multiplier of 1.0: it must be above half of it"):
        adaptive(noise=1.0, nodes=4)


def test_a_count_that_leaves_little_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    adaptive(noise=1.0, nodes=11)
    assert "raise clipped_count_stddev or ask more nodes" in caplog.text


# -- as strategies -----------------------------------------------------------------------------------------------------


def test_failures_of_the_wrapped_strategy_are_counted_once() -> None:
    federation = Federation(4)
    federation.fail("node-1", Error(1000, "busy"))
    run = federation.run(averaging_app(lambda: fixed(), rounds=2), training_app())
    rounds = [dict(event.data) for event in run.events if event.kind == "round"]
    assert [(event["replies"], event["failures"]) for event in rounds] == [(6, 2), (6, 2)]
    assert sum(event.kind == "reply-failed" for event in run.events) == 4


def test_replies_are_folded_as_they_arrive() -> None:
    inner = FedAvg()
    folded: list[int] = []
    federation = Federation(4, on_message=lambda message: folded.append(inner.folded))
    federation.run(averaging_app(lambda: fixed(inner), rounds=1), training_app())
    assert folded[:4] == [0, 1, 2, 3]


def test_a_run_that_was_killed_before_its_first_round_was_saved_goes_on_with_the_same_noise() -> None:
    seen: list[bytes] = []

    def watch(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        if server_round == 1:
            seen.append(arrays["0"].numpy().tobytes())
            if len(seen) == 1:
                raise MemoryError("behind the noise, before the checkpoint")
        return None

    app = averaging_app(lambda: fixed(noise=1.0), rounds=2, evaluate_fn=watch)
    run = Federation(2).begin(app, training_app())
    with pytest.raises(MemoryError):
        run.execute()
    run.execute()
    assert len(seen) == 2
    assert seen[0] == seen[1]


def test_the_seed_of_a_run_is_that_of_its_checkpoint() -> None:
    run = Federation(2).begin(averaging_app(lambda: fixed(noise=1.0), rounds=3), training_app())
    with pytest.raises(Interrupted):
        run.execute(stop_after_checkpoint=2)
    seed = int(str(run.server_context.state.config_records["strategy-1.state.noise"]["seed"]))
    run.execute()
    again = Federation(2).run(averaging_app(lambda: fixed(noise=1.0, noise_seed=seed), rounds=3), training_app())
    assert model_of(run.result).tobytes() == model_of(again.result).tobytes()


def test_the_wrapped_strategy_is_told_and_keeps_its_state() -> None:
    strategy = fixed(FedAvgM(server_momentum=0.9, min_replies=2, grace=1.5, max_failed_rounds=7))
    assert strategy.stream_options(5) == {"min_replies": 2, "grace": 1.5, "on_offline": "wait"}
    assert strategy.max_failed_rounds == 7
    trained(strategy, START, [[Reply(LONG), Reply(SHORT)]] * 2)
    state = strategy.save_state()
    other = fixed(FedAvgM(server_momentum=0.9))
    other.load_state(state)
    assert other.save_state() == state
    assert "wrapped.momentum" in state
    for missing in ("noise", "clipping"):
        kept = adaptive().save_state()
        del kept[missing]
        with pytest.raises(CheckpointError, match="start the run anew"):
            adaptive().load_state(kept)


def test_what_was_not_sent_cannot_be_clipped() -> None:
    with pytest.raises(StrategyError, match="call configure_train first"):
        fixed().aggregate_train(1, [])


def test_a_round_without_a_usable_reply_adds_no_noise_and_moves_no_norm() -> None:
    class Deaf(FedAvg):
        def aggregate_train(
            self, server_round: int, replies: Iterable[Message]
        ) -> tuple[ArrayRecord | None, MetricRecord | None]:
            for reply in replies:
                self.record_failure(reply, "not today")
            return None, None

    strategy = DifferentialPrivacyServerSideAdaptiveClipping(Deaf(max_failed_rounds=None), 0.1, 10, 1.0)
    found = trained(strategy, START, [[Reply(LONG)] * 2])
    np.testing.assert_array_equal(found.models[0]["0"], START["0"])
    assert strategy.clipping_norm == 1.0


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (fixed, {"noise": -1.0}),
        (fixed, {"norm": 0.0}),
        (fixed, {"nodes": 0}),
        (adaptive, {"initial_clipping_norm": 0.0}),
        (adaptive, {"target_clipped_quantile": 1.5}),
        (adaptive, {"clip_norm_lr": 0.0}),
        (adaptive, {"clipped_count_stddev": -1.0}),
    ],
)
def test_parameters_outside_their_range_are_refused(make: Any, wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        make(**wrong)
    with pytest.raises(TypeError, match="a strategy is wrapped, not NoneType"):
        DifferentialPrivacyServerSideFixedClipping(None, 1.0, 1.0, 2)  # type: ignore[arg-type]


def test_the_summary_tells_noise_and_norm(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        fixed(noise=0.5, norm=2.0).summary()
    assert "noise multiplier 0.5, clipping norm 2" in caplog.text
    assert "at least 2 train" in caplog.text
