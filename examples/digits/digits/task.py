"""The data, how it is split, and the model: one hidden layer, in NumPy, float32.

All that is random is seeded, and matrices are multiplied in small batches, which no BLAS splits over threads: the same
config gives the same bits everywhere on one kind of machine.
"""

from __future__ import annotations

import gzip
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]
Examples = tuple[Floats, Labels]
"""Features of shape (n, 64) between 0 and 1, and digits of shape (n,)."""

FEATURES, CLASSES = 64, 10
ALPHA = 0.5
TEST_SHARE = 0.2
SMALLEST_PART = 20


@lru_cache(maxsize=1)
def digits() -> Examples:
    """The 1,797 images of 8 x 8 that scikit-learn brings along, in the order of the file.

    The file is read directly: `sklearn.datasets.load_digits` gives the same, after a second of imports.
    """
    package = find_spec("sklearn")
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError("the digits come with scikit-learn: install scikit-learn on this node")
    path = Path(package.submodule_search_locations[0], "datasets", "data", "digits.csv.gz")
    with gzip.open(path, "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.float32)
    return table[:, :FEATURES] / np.float32(16), table[:, FEATURES].astype(np.int64)


def test_data(seed: int) -> Examples:
    """What the server holds back to test the model with."""
    features, labels = digits()
    chosen = _order(seed)[: _test_size()]
    return features[chosen], labels[chosen]


def node_data(partition: int, partitions: int, seed: int) -> tuple[Examples, Examples]:
    """The training and the validation examples of one node.

    For each digit the nodes' shares are drawn from a Dirichlet distribution with alpha 0.5, so that most nodes see much
    of some digits and little of others, and have more or fewer examples. Draws that leave a node with fewer than 20
    are repeated.
    """
    features, labels = digits()
    rest = _order(seed)[_test_size() :]
    rng = np.random.default_rng([seed, partitions])
    while True:
        parts: list[list[NDArray[np.int64]]] = [[] for _ in range(partitions)]
        for digit in range(CLASSES):
            members = rest[labels[rest] == digit]
            shares = rng.dirichlet(np.full(partitions, ALPHA))
            cuts = (np.cumsum(shares)[:-1] * len(members)).astype(np.int64)
            for part, chosen in zip(parts, np.split(members, cuts), strict=True):
                part.append(chosen)
        sizes = [sum(map(len, part)) for part in parts]
        if min(sizes) >= min(SMALLEST_PART, len(rest) // (2 * partitions)):
            break
    mine = np.random.default_rng([seed, partition]).permutation(np.concatenate(parts[partition]))
    held = max(1, len(mine) // 5)
    return (features[mine[held:]], labels[mine[held:]]), (features[mine[:held]], labels[mine[:held]])


def initial_model(hidden: int, seed: int) -> list[Floats]:
    """Weights and biases of the two layers (He initialisation)."""
    rng = np.random.default_rng(seed)
    first = rng.standard_normal((FEATURES, hidden)) * np.sqrt(2 / FEATURES)
    second = rng.standard_normal((hidden, CLASSES)) * np.sqrt(2 / hidden)
    return [
        first.astype(np.float32),
        np.zeros(hidden, dtype=np.float32),
        second.astype(np.float32),
        np.zeros(CLASSES, dtype=np.float32),
    ]


def train(
    model: list[Floats], examples: Examples, *, epochs: int, rate: float, batch: int, rng: np.random.Generator
) -> tuple[list[Floats], float]:
    """Minimise the cross-entropy by stochastic gradient descent; the trained model and the loss of the last epoch."""
    w1, b1, w2, b2 = (array.copy() for array in model)
    features, labels = examples
    step = np.float32(rate)
    loss = 0.0
    for _ in range(epochs):
        order = rng.permutation(len(labels))
        loss = 0.0
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            x, y = features[chosen], labels[chosen]
            hidden = np.maximum(x @ w1 + b1, 0)
            scores = _softmax(hidden @ w2 + b2)
            rows = np.arange(len(y))
            loss -= float(np.log(scores[rows, y] + 1e-9).sum())
            scores[rows, y] -= 1
            scores /= len(y)
            back = (scores @ w2.T) * (hidden > 0)
            w2 -= step * (hidden.T @ scores)
            b2 -= step * scores.sum(axis=0)
            w1 -= step * (x.T @ back)
            b1 -= step * back.sum(axis=0)
        loss /= max(1, len(order))
    return [w1, b1, w2, b2], loss


def evaluate(model: list[Floats], examples: Examples) -> tuple[float, float]:
    """Mean cross-entropy and accuracy."""
    w1, b1, w2, b2 = model
    features, labels = examples
    loss, right = 0.0, 0
    for start in range(0, len(labels), 32):
        x, y = features[start : start + 32], labels[start : start + 32]
        scores = _softmax(np.maximum(x @ w1 + b1, 0) @ w2 + b2)
        loss -= float(np.log(scores[np.arange(len(y)), y] + 1e-9).sum())
        right += int((scores.argmax(axis=1) == y).sum())
    return loss / len(labels), right / len(labels)


def _softmax(scores: Floats) -> Floats:
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    scores /= scores.sum(axis=1, keepdims=True)
    return scores


def _order(seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).permutation(len(digits()[1]))


def _test_size() -> int:
    return int(len(digits()[1]) * TEST_SHARE)
