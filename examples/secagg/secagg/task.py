"""The data, which comes with scikit-learn, and a logistic regression in NumPy."""

import numpy as np
from sklearn.datasets import load_breast_cancer

FEATURES = 30


def load_data(partition_id: int, num_partitions: int) -> tuple[np.ndarray, np.ndarray]:
    """The training examples of a node: every n-th of four fifths of the patients."""
    x, y = _standardized()
    held_out = np.arange(len(y)) % 5 == 0
    x, y = x[~held_out], y[~held_out]
    return x[partition_id::num_partitions], y[partition_id::num_partitions]


def load_held_out() -> tuple[np.ndarray, np.ndarray]:
    """The patients that no node trains on."""
    x, y = _standardized()
    return x[::5], y[::5]


def initial_model() -> list[np.ndarray]:
    """All zeros."""
    return [np.zeros(FEATURES), np.zeros(1)]


def fit(model: list[np.ndarray], x: np.ndarray, y: np.ndarray, steps: int, learning_rate: float) -> None:
    """Gradient descent on the logistic loss. Changes the arrays of the model."""
    weights, bias = model
    for _ in range(steps):
        error = 1.0 / (1.0 + np.exp(-(x @ weights + bias))) - y
        weights -= learning_rate * (x.T @ error) / len(y)
        bias -= learning_rate * error.mean()


def accuracy(model: list[np.ndarray], x: np.ndarray, y: np.ndarray) -> float:
    """The share of examples that the model puts on the right side."""
    weights, bias = model
    return float(np.mean((x @ weights + bias > 0.0) == y))


def _standardized() -> tuple[np.ndarray, np.ndarray]:
    data = load_breast_cancer()
    return (data.data - data.data.mean(axis=0)) / data.data.std(axis=0), data.target
