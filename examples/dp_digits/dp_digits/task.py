"""The data, split evenly over the nodes, and the model: softmax regression in NumPy, float32."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Examples = tuple[Floats, NDArray[np.int64]]
"""Features of shape (n, 65), the last a one, and digits of shape (n,)."""

FEATURES, CLASSES = 64, 10
TEST_SHARE = 0.2


@lru_cache(maxsize=1)
def digits() -> Examples:
    """The 1,797 images of 8 x 8 that scikit-learn brings along."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    ones = np.ones((len(images), 1), dtype=np.float32)
    return np.hstack([images.astype(np.float32) / np.float32(16), ones]), labels.astype(np.int64)


def test_data(seed: int) -> Examples:
    """What the server tests the model with; no node has it."""
    features, labels = digits()
    chosen = _order(seed)[: int(len(labels) * TEST_SHARE)]
    return features[chosen], labels[chosen]


def node_data(partition: int, partitions: int, seed: int) -> Examples:
    """What one node trains on."""
    features, labels = digits()
    chosen = _order(seed)[int(len(labels) * TEST_SHARE) :][partition::partitions]
    return features[chosen], labels[chosen]


def train(model: Floats, examples: Examples, *, epochs: int, rate: float) -> Floats:
    """The model after so many steps of gradient descent on the cross-entropy."""
    features, labels = examples
    wanted = np.eye(CLASSES, dtype=np.float32)[labels]
    for _ in range(epochs):
        model = model - np.float32(rate / len(labels)) * (features.T @ (_softmax(features @ model) - wanted))
    return model


def accuracy(model: Floats, examples: Examples) -> float:
    """The share of the examples that the model gets right."""
    features, labels = examples
    return float(((features @ model).argmax(axis=1) == labels).mean())


def _softmax(scores: Floats) -> Floats:
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), dtype=np.float32)


def _order(seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).permutation(len(digits()[1]))
