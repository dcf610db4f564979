"""The data, how it is split, and the estimator. Nothing here knows of federated learning."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import log_loss

Floats = NDArray[np.float64]
Examples = tuple[Floats, NDArray[np.int64]]
"""Features of shape (n, 30), in units as different as areas and ratios, and labels 0 or 1 of shape (n,)."""

FEATURES = 30
TEST_SHARE = 5  # one example of so many is the server's


def test_data(seed: int) -> Examples:
    """What the server holds back."""
    features, labels = _shuffled(seed)
    return features[::TEST_SHARE], labels[::TEST_SHARE]


def node_data(partition: int, partitions: int, seed: int) -> Examples:
    """The examples of one node: each partition-th of those that the server does not have."""
    features, labels = _shuffled(seed)
    rest = np.arange(len(labels)) % TEST_SHARE != 0
    return features[rest][partition::partitions], labels[rest][partition::partitions]


def fitted(
    examples: Examples, weights: Floats, bias: Floats, *, epochs: int, regularization: float, seed: int
) -> SGDClassifier:
    """A logistic regression, fitted from these weights (1, 30) and this bias (1,) on."""
    model = SGDClassifier(
        loss="log_loss",
        alpha=regularization,
        max_iter=epochs,
        tol=None,
        learning_rate="constant",
        eta0=0.01,
        random_state=seed,
    )
    return model.fit(*examples, coef_init=weights, intercept_init=bias)


def evaluate(examples: Examples, weights: Floats, bias: Floats) -> tuple[float, float]:
    """Log loss and accuracy."""
    features, labels = examples
    model = SGDClassifier(loss="log_loss")
    model.coef_, model.intercept_, model.classes_ = weights, bias, np.array([0, 1])
    return float(log_loss(labels, model.predict_proba(features), labels=[0, 1])), float(model.score(features, labels))


def _shuffled(seed: int) -> Examples:
    features, labels = load_breast_cancer(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    return features[order], labels[order].astype(np.int64)
