"""The data, how it is split, and the trees. Nothing here knows of federated learning."""

from __future__ import annotations

from typing import Any

import numpy as np
import xgboost as xgb
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer

TEST_SHARE = 5  # one example of so many is the server's


def test_data(seed: int) -> xgb.DMatrix:
    """What the server holds back."""
    features, labels = _shuffled(seed)
    return xgb.DMatrix(features[::TEST_SHARE], label=labels[::TEST_SHARE])


def node_data(partition: int, partitions: int, seed: int) -> xgb.DMatrix:
    """The examples of one node: each partition-th of those that the server does not have."""
    features, labels = _shuffled(seed)
    rest = np.arange(len(labels)) % TEST_SHARE != 0
    return xgb.DMatrix(features[rest][partition::partitions], label=labels[rest][partition::partitions])


def parameters(rate: float, depth: int, nodes: int) -> dict[str, Any]:
    """XGBoost's parameters.

    A round adds the trees of all nodes, each of which would correct the whole error: the rate is shared by the nodes.
    ``base_score`` is set, since otherwise each node would begin with the mean of its own labels.
    """
    return {
        "objective": "binary:logistic",
        "eta": rate / nodes,
        "max_depth": depth,
        "base_score": 0.5,
        "tree_method": "hist",
        "nthread": 1,
    }


def boosted(model: bytes, examples: xgb.DMatrix, rounds: int, given: dict[str, Any]) -> bytes:
    """The trees that ``rounds`` rounds of boosting add to a model; of no model (no bytes), the first ones."""
    booster = xgb.Booster(given, [examples])
    if model:
        booster.load_model(bytearray(model))
        booster.set_param(given)
    before = booster.num_boosted_rounds()
    for number in range(before, before + rounds):
        booster.update(examples, number)
    return bytes(booster[before : before + rounds].save_raw("json"))


def evaluate(model: bytes, examples: xgb.DMatrix) -> tuple[float, float]:
    """Log loss and accuracy. A model of no bytes says one half to everything."""
    labels = examples.get_label()
    chances: NDArray[Any] = np.full(len(labels), 0.5, dtype=np.float32)
    if model:
        booster = xgb.Booster({"nthread": 1})
        booster.load_model(bytearray(model))
        chances = booster.predict(examples)
    likely = np.clip(np.where(labels == 1, chances, 1 - chances), 1e-7, 1)
    return float(-np.log(likely).mean()), float(((chances > 0.5) == labels).mean())


def _shuffled(seed: int) -> tuple[NDArray[Any], NDArray[Any]]:
    features, labels = load_breast_cancer(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    return features[order], labels[order]
