"""FedProx, FedAvgM and the FedOpt family follow the update rules of their papers."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from fedq.apps import ArrayRecord, ConfigRecord, Message, RecordDict
from fedq.apps.errors import StrategyError
from fedq.apps.strategy import CheckpointError, FedAdagrad, FedAdam, FedAvg, FedAvgM, FedOpt, FedProx, FedYogi
from fedq.apps.testing import Federation
from tests.apps.federations import averaging_app, model_of, training_app
from tests.apps.strategies.scripted import Reply, record, single, trained

START = single(1.0, -2.0, 0.5)
# Two nodes with one and three examples; the averages are [2, -1, 0], [2, 0, 0.5] and [1, 1, 1].
ROUNDS = [
    [Reply(single(5.0, -4.0, 3.0), 1), Reply(single(1.0, 0.0, -1.0), 3)],
    [Reply(single(2.0, 3.0, 0.5), 1), Reply(single(2.0, -1.0, 0.5), 3)],
    [Reply(single(1.0, 1.0, 1.0), 1), Reply(single(1.0, 1.0, 1.0), 3)],
]
AVERAGES = [np.array([2.0, -1.0, 0.0]), np.array([2.0, 0.0, 0.5]), np.array([1.0, 1.0, 1.0])]


def models(strategy: FedAvg) -> list[NDArray[Any]]:
    return [model["0"] for model in trained(strategy, START, ROUNDS).models]


# -- FedProx -----------------------------------------------------------------------------------------------------------


def test_fedprox_tells_the_nodes_the_coefficient_and_averages_as_fedavg_does() -> None:
    told: list[object] = []

    class Watching(FedProx):
        def configure_train(self, *args: Any, **kwargs: Any) -> list[Message]:
            messages = list(super().configure_train(*args, **kwargs))
            told.extend(message.content.config_records["config"]["proximal-mu"] for message in messages)
            return messages

    found = models(Watching(proximal_mu=0.25))
    assert told == [0.25] * 6
    for model, average in zip(found, AVERAGES, strict=True):
        np.testing.assert_array_equal(model, average)


def test_a_node_that_adds_the_proximal_term_stays_closer_to_what_it_was_sent() -> None:
    # Li et al. 2018, algorithm 2: minimise F(w) + mu/2 ||w - w_sent||^2; for F(w) = ||w - p||^2 / 2 it is
    # (p + mu * w_sent) / (1 + mu).
    def app(mu: float) -> NDArray[Any]:
        def change(content: RecordDict, context: Any) -> RecordDict:
            target = np.array([4.0, 0.0, 0.0, 0.0, 0.0]) * (int(context.node_config["partition-id"]) + 1)
            minimum = target / (1.0 + mu)
            return RecordDict({**content, "arrays": ArrayRecord([minimum])})

        run = Federation(2).run(averaging_app(lambda: FedProx(proximal_mu=mu), rounds=1), training_app(change))
        return model_of(run.result)

    np.testing.assert_allclose(app(1.0), 0.5 * app(1e-12), rtol=1e-6)


def test_fedprox_without_a_coefficient_says_that_it_is_fedavg(caplog: pytest.LogCaptureFixture) -> None:
    FedProx()
    assert "is FedAvg" in caplog.text
    with pytest.raises(ValueError, match="proximal_mu must be at least 0"):
        FedProx(proximal_mu=-1.0)


# -- FedAvgM -----------------------------------------------------------------------------------------------------------


def test_fedavgm_follows_hsu_et_al_2019_section_4_3() -> None:
    beta, rate = 0.9, 0.5
    w, v = START["0"].copy(), np.zeros(3)
    for model, average in zip(models(FedAvgM(server_learning_rate=rate, server_momentum=beta)), AVERAGES, strict=True):
        v = beta * v + (w - average)
        w = w - rate * v
        np.testing.assert_allclose(model, w, rtol=1e-12, atol=1e-15)


def test_fedavgm_without_momentum_at_rate_one_is_fedavg() -> None:
    for model, average in zip(models(FedAvgM()), AVERAGES, strict=True):
        np.testing.assert_array_equal(model, average)
    w = START["0"].copy()
    for model, average in zip(models(FedAvgM(server_learning_rate=0.25)), AVERAGES, strict=True):
        w = 0.75 * w + 0.25 * average
        np.testing.assert_allclose(model, w, rtol=1e-12, atol=1e-15)


# -- FedAdagrad, FedAdam, FedYogi --------------------------------------------------------------------------------------

ETA, TAU, BETA_1, BETA_2 = 0.2, 0.05, 0.8, 0.95


def adagrad(v: NDArray[Any], delta: NDArray[Any]) -> NDArray[Any]:
    summed: NDArray[Any] = v + delta**2
    return summed


def adam(v: NDArray[Any], delta: NDArray[Any]) -> NDArray[Any]:
    return BETA_2 * v + (1 - BETA_2) * delta**2


def yogi(v: NDArray[Any], delta: NDArray[Any]) -> NDArray[Any]:
    moved: NDArray[Any] = v - (1 - BETA_2) * delta**2 * np.sign(v - delta**2)
    return moved


@pytest.mark.parametrize(
    ("strategy", "second", "beta_1", "corrected"),
    [
        (FedAdagrad(eta=ETA, tau=TAU), adagrad, 0.0, False),
        (FedAdam(eta=ETA, tau=TAU, beta_1=BETA_1, beta_2=BETA_2, bias_correction=False), adam, BETA_1, False),
        (FedAdam(eta=ETA, tau=TAU, beta_1=BETA_1, beta_2=BETA_2), adam, BETA_1, True),
        (FedYogi(eta=ETA, tau=TAU, beta_1=BETA_1, beta_2=BETA_2), yogi, BETA_1, False),
    ],
    ids=["adagrad", "adam as published", "adam with bias correction", "yogi"],
)
def test_the_family_follows_reddi_et_al_2020_algorithm_2(
    strategy: FedOpt, second: Any, beta_1: float, corrected: bool
) -> None:
    x, m, v = START["0"].copy(), np.zeros(3), np.zeros(3)
    for number, (model, average) in enumerate(zip(models(strategy), AVERAGES, strict=True), start=1):
        delta = average - x
        m = beta_1 * m + (1 - beta_1) * delta
        v = second(v, delta)
        rate = ETA
        if corrected:  # Kingma and Ba 2014, section 2, counted from the second step as Flower does
            rate *= math.sqrt(1 - BETA_2 ** (number + 1)) / (1 - BETA_1 ** (number + 1))
        x = x + rate * m / (np.sqrt(v) + TAU)
        np.testing.assert_allclose(model, x, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    "dtype", ["float16", "float32", ">f4", "float64", "complex64", "int32", ml_dtypes.bfloat16], ids=str
)
@pytest.mark.parametrize("make", [lambda: FedAvgM(server_momentum=0.5), FedAdam], ids=["FedAvgM", "FedAdam"])
def test_optimizers_keep_the_dtypes_that_averages_have(make: Any, dtype: Any) -> None:
    sent = {"a": np.arange(6).reshape(2, 3).astype(dtype), "b": np.array(3).astype(dtype)}
    rounds = [[Reply({name: np.asarray(array + 1).astype(dtype) for name, array in sent.items()})] * 2] * 3
    for model, mean in zip(trained(make(), sent, rounds).models, trained(FedAvg(), sent, rounds).models, strict=True):
        assert {name: (array.dtype, array.shape) for name, array in model.items()} == {
            name: (array.dtype, array.shape) for name, array in mean.items()
        }


def test_moments_of_half_precision_models_do_not_vanish() -> None:
    # The square of the difference, 1e-8, is zero in float16.
    small = {"0": np.array([1e-4], dtype="float16")}
    (model,) = trained(FedAdagrad(eta=1.0, tau=1e-6), {"0": np.zeros(1, "float16")}, [[Reply(small)] * 2]).models
    np.testing.assert_allclose(model["0"], 1.0, rtol=0.02)


def test_complex_numbers_are_optimized_as_pairs_of_real_ones() -> None:
    start, to = np.array([1.0 + 2.0j, -3.0j]), np.array([2.0 - 1.0j, 0.5 + 0.0j])
    (pairs,) = trained(FedYogi(eta=0.5), {"0": start.view(float)}, [[Reply({"0": to.view(float)})] * 2]).models
    (model,) = trained(FedYogi(eta=0.5), {"0": start}, [[Reply({"0": to})] * 2]).models
    np.testing.assert_array_equal(model["0"].view(float), pairs["0"])


@pytest.mark.parametrize("wrong", [{"beta_1": 1.0}, {"beta_2": -0.1}, {"tau": 0.0}], ids=str)
def test_parameters_outside_their_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FedAdam(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="server_momentum"):
        FedAvgM(server_momentum=-0.5)


def test_an_optimizer_that_was_sent_no_model_says_what_is_missing() -> None:
    content = RecordDict({"arrays": record(START), "metrics": ConfigRecord()})
    content["metrics"] = trained(FedAvg(), START, ROUNDS[:1]).result.train_metrics_clientapp[1]
    content.metric_records["metrics"]["num-examples"] = 1
    reply = Message(content, reply_to=Message(RecordDict(), "a", "train"))
    with pytest.raises(StrategyError, match="call configure_train before aggregate_train"):
        FedAdam().aggregate_train(1, [reply])


def test_a_checkpoint_of_another_shape_is_refused() -> None:
    other = FedAdam()
    other.load_state(RecordDict({"first-moment": record(single(1.0)), "second-moment": record(single(1.0))}))
    with pytest.raises(CheckpointError, match="another shape"):
        models(other)
    with pytest.raises(CheckpointError, match="holds no first-moment"):
        FedAdam().load_state(RecordDict({"first-moment": ConfigRecord()}))
