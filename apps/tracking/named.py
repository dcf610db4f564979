"""Trackers by a word, as people type it: ``tensorboard:DIR``."""

from __future__ import annotations

from fedq.apps.tracking.mlflow import MLflow
from fedq.apps.tracking.tensorboard import TensorBoard
from fedq.apps.tracking.tracker import Tracker
from fedq.apps.tracking.wandb import WandB

TRACKERS = ("tensorboard:DIR", "mlflow[:URI]", "wandb[:PROJECT]")
"""What `tracker_named` understands."""


def tracker_named(word: str) -> Tracker:
    """The tracker that a word names: ``tensorboard:DIR``, ``mlflow``, ``mlflow:URI``, ``wandb``, ``wandb:PROJECT``.

    Raises:
        ValueError: there is no such tracker.
        MissingExtra: its package is not installed.
    """
    kind, _, place = word.partition(":")
    if kind == "tensorboard" and place:
        return TensorBoard(place)
    if kind == "mlflow":
        return MLflow(place or None)
    if kind == "wandb":
        return WandB(place or None)
    raise ValueError(f"{word!r} is no tracker; there are {', '.join(TRACKERS)}")
