"""Trackers: a run's metrics in TensorBoard, MLflow or Weights & Biases, or wherever a class of three methods puts them.

They work for whoever follows the run, not in its ServerApp: so no package and no credentials of a tracker are needed at
the server, and an interrupted ServerApp leaves no double points.

::

    run = link.submit("my-app")
    run.track(TensorBoard("tb"), MLflow("http://mlflow:5000"))      # until the run is over; returns its History
"""

from fedq.apps.tracking.mlflow import MLflow
from fedq.apps.tracking.named import TRACKERS, tracker_named
from fedq.apps.tracking.tensorboard import TensorBoard
from fedq.apps.tracking.tracker import TrackedRun, Tracker
from fedq.apps.tracking.tracking import HappenedEvent, Tracking, track
from fedq.apps.tracking.wandb import WandB

__all__ = [
    "TRACKERS",
    "HappenedEvent",
    "MLflow",
    "TensorBoard",
    "TrackedRun",
    "Tracker",
    "Tracking",
    "WandB",
    "track",
    "tracker_named",
]
