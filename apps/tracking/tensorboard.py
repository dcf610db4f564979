"""TensorBoard: event files that ``tensorboard --logdir`` shows."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from time import time_ns
from typing import Any

from fedq.apps.extras import require
from fedq.apps.tracking.tracker import TrackedRun


class TensorBoard:
    """Writes the metrics as scalars and the config as a text, with tensorboardX, which needs neither PyTorch nor
    TensorFlow.

    Each run has a folder below ``folder``, called by its key, so that runs lie beside each other in TensorBoard. A run
    that is tracked again goes into the same folder; the new event file says that what older ones hold is void.

    Raises:
        MissingExtra: tensorboardX is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._package = require("tensorboardX", "tensorboard", "the tracker TensorBoard needs tensorboardX")
        self._writer: Any = None

    def begin(self, run: TrackedRun) -> None:
        """Open the run's event file."""
        folder = self.folder / run.key
        again = folder.is_dir() and any("tfevents" in path.name for path in folder.iterdir())
        # From this step on, what stands in the folder's older files is no longer shown.
        # Files are called by the second and read in the order of their names. With a finer suffix none overwrites
        # another, and the newest comes last.
        self._writer = self._package.SummaryWriter(
            str(folder), purge_step=0 if again else None, filename_suffix=f".{time_ns()}"
        )
        rows = [f"| {name} | {value} |" for name, value in {"run": run.name, **run.config}.items()]
        self._writer.add_text("config", "\n".join(["| key | value |", "| --- | --- |", *rows]))
        self._writer.flush()

    def log(self, step: int, metrics: Mapping[str, float], time: float) -> None:
        """Write one scalar for each metric."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step, walltime=time)
        self._writer.flush()

    def end(self, status: str) -> None:
        """Close the event file."""
        self._writer.add_text("status", status)
        self._writer.close()
