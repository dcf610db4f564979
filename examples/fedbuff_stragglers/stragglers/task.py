"""The data, how it is split, the model (softmax regression in NumPy, float32), and which nodes are slow."""

from __future__ import annotations

import gzip
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Examples = tuple[Floats, NDArray[np.int64]]
"""Features of shape (n, 65), the last a one, and digits of shape (n,)."""

FEATURES, CLASSES = 64, 10
TEST_SHARE = 0.2


def slowness(partition: int, partitions: int, *, share: float, most: float, seed: int) -> float:
    """How many times as long this node takes as a quick one.

    1 for most; for a seeded choice of ``share`` of the nodes, rounded, a number drawn from between ``most / 2`` and
    ``most``.
    """
    rng = np.random.default_rng([seed, partitions])
    slow = rng.permutation(partitions)[: round(share * partitions)]
    factors = rng.uniform(most / 2, most, partitions)
    return float(factors[partition]) if partition in slow else 1.0


@lru_cache(maxsize=1)
def digits() -> Examples:
    """The 1,797 images of 8 x 8 that scikit-learn brings along.

    The file is read directly, since importing scikit-learn takes a second.
    """
    package = find_spec("sklearn")
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError("the digits come with scikit-learn: install scikit-learn on this node")
    path = Path(package.submodule_search_locations[0], "datasets", "data", "digits.csv.gz")
    with gzip.open(path, "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.float32)
    ones = np.ones((len(table), 1), dtype=np.float32)
    return np.hstack([table[:, :FEATURES] / np.float32(16), ones]), table[:, FEATURES].astype(np.int64)


def test_data(seed: int) -> Examples:
    """What the server tests the model with; no node has it."""
    features, labels = digits()
    chosen = _order(seed)[: _test_size()]
    return features[chosen], labels[chosen]


def node_data(partition: int, partitions: int, seed: int) -> Examples:
    """What one node trains on: a fifth of it of all digits, the rest of a few that the others hardly have."""
    features, labels = digits()
    rest = _order(seed)[_test_size() :]
    is_mixed = np.arange(len(rest)) % 5 == 0
    mixed, by_digit = rest[is_mixed], rest[~is_mixed]
    by_digit = by_digit[np.argsort(labels[by_digit], kind="stable")]
    chosen = np.concatenate([mixed[partition::partitions], np.array_split(by_digit, partitions)[partition]])
    return features[chosen], labels[chosen]


def initial_model() -> Floats:
    """All zeros."""
    return np.zeros((FEATURES + 1, CLASSES), dtype=np.float32)


def train(model: Floats, examples: Examples, *, steps: int, rate: float) -> Floats:
    """The model after so many steps of gradient descent on the cross-entropy."""
    features, labels = examples
    wanted = np.eye(CLASSES, dtype=np.float32)[labels]
    for _ in range(steps):
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


def _test_size() -> int:
    return int(len(digits()[1]) * TEST_SHARE)
