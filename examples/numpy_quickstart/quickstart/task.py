"""Data and model: each partition sees the same plane through its own noise and its own part of the space."""

import numpy as np

WEIGHTS = np.array([1.5, -2.0, 0.5, 3.0])
BIAS = -0.7


def load_data(partition_id: int, num_partitions: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training and test examples of a partition; later partitions have more."""
    rng = np.random.default_rng(partition_id)
    number = 60 + 20 * partition_id
    x = rng.standard_normal((number, len(WEIGHTS))) + partition_id / num_partitions
    y = x @ WEIGHTS + BIAS + 0.1 * rng.standard_normal(number)
    cut = number * 4 // 5
    return x[:cut], y[:cut], x[cut:], y[cut:]


def initial_model() -> list[np.ndarray]:
    """All zeros."""
    return [np.zeros(len(WEIGHTS)), np.zeros(1)]


def fit(model: list[np.ndarray], x: np.ndarray, y: np.ndarray, epochs: int, learning_rate: float) -> float:
    """Gradient descent on the squared error. Changes the arrays of the model; returns the loss."""
    weights, bias = model
    for _ in range(epochs):
        error = x @ weights + bias - y
        weights -= learning_rate * (x.T @ error) / len(y)
        bias -= learning_rate * error.mean()
    return loss(model, x, y)


def loss(model: list[np.ndarray], x: np.ndarray, y: np.ndarray) -> float:
    """Mean squared error."""
    weights, bias = model
    return float(np.mean((x @ weights + bias - y) ** 2))
