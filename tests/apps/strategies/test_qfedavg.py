"""QFedAvg follows its paper: nodes with a high loss pull harder."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedq.apps.strategy import QFedAvg
from tests.apps.strategies.scripted import Reply, single, trained

START = single(1.0, -2.0)
VECTORS = [np.array([2.0, 0.0]), np.array([-1.0, -2.5]), np.array([1.0, 1.0])]
LOSSES = [0.5, 4.0, 1.0]


def model_of(strategy: QFedAvg, losses: list[float] = LOSSES) -> Any:
    replies = [
        Reply({"0": vector}, examples, {"train_loss": loss})
        for vector, loss, examples in zip(VECTORS, losses, (1, 9, 70), strict=True)
    ]
    return trained(strategy, START, [replies])


@pytest.mark.parametrize("q", [0.0, 0.1, 1.0, 5.0])
@pytest.mark.parametrize("rate", [0.1, 2.0])
def test_the_step_is_that_of_li_et_al_2020_algorithm_2(q: float, rate: float) -> None:
    w, lipschitz = START["0"], 1.0 / rate
    deltas, steps = [], []
    for vector, loss in zip(VECTORS, LOSSES, strict=True):
        loss += 1e-10
        gradient = lipschitz * (w - vector)
        deltas.append(loss**q * gradient)
        steps.append(q * loss ** (q - 1) * float((gradient**2).sum()) + lipschitz * loss**q)
    expected = w - sum(deltas) / sum(steps)
    (model,) = model_of(QFedAvg(client_learning_rate=rate, q=q)).models
    np.testing.assert_allclose(model["0"], expected, rtol=1e-12)


def test_without_q_the_model_is_the_plain_mean() -> None:
    (model,) = model_of(QFedAvg(client_learning_rate=0.3, q=0.0)).models
    np.testing.assert_allclose(model["0"], np.mean(VECTORS, axis=0), rtol=1e-12)


@pytest.mark.parametrize("loss", [-1.0, float("nan"), float("inf")])
def test_a_reply_with_a_loss_that_is_none_counts_as_failed(loss: float) -> None:
    found = model_of(QFedAvg(client_learning_rate=0.3, q=0.0), [0.5, loss, 1.0])
    np.testing.assert_allclose(found.models[0]["0"], (VECTORS[0] + VECTORS[2]) / 2, rtol=1e-12)
    (failed,) = [event.data for event in found.run.events if event.kind == "reply-failed"]
    assert failed["node"] == "node-1"


def test_a_reply_without_a_loss_or_too_far_away_counts_as_failed() -> None:
    replies = [
        Reply(single(2.0, 0.0), 1, {"train_loss": 1.0}),
        Reply(single(1.0, 1.0)),
        Reply(single(1e200, 0.0), 1, {"train_loss": 1.0}),
    ]
    found = trained(QFedAvg(client_learning_rate=0.3, q=1.0), START, [replies])
    reasons = [str(event.data["reason"]) for event in found.run.events if event.kind == "reply-failed"]
    assert len(reasons) == 2
    assert "no number 'train_loss'" in reasons[0]
    assert "too far from those sent" in reasons[1]


@pytest.mark.parametrize("wrong", [{"client_learning_rate": 0.0}, {"client_learning_rate": 1.0, "q": -1.0}], ids=str)
def test_parameters_outside_their_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        QFedAvg(**wrong)  # type: ignore[arg-type]
