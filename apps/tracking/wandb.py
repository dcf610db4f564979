"""WandB: a run at Weights & Biases."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from fedq.apps.extras import require
from fedq.apps.tracking.tracker import TrackedRun


class WandB:
    """Writes the metrics and the config with wandb, whose own environment variables hold: WANDB_API_KEY, WANDB_MODE and
    so on.

    A run that is tracked again is continued by its key, and steps that are there are not written again. In offline mode
    wandb cannot look: there each following writes a folder of its own, whole.

    Args:
        project: the project's name, or ``entity/project``. None: as WANDB_PROJECT says, or "fedq".
        folder: where wandb keeps its files; None: as WANDB_DIR says, or the current one.

    Raises:
        MissingExtra: wandb is not installed.
    """

    def __init__(self, project: str | None = None, *, folder: str | os.PathLike[str] | None = None) -> None:
        entity, _, name = (project or os.environ.get("WANDB_PROJECT") or "fedq").rpartition("/")
        self.project, self.entity = name, entity or None
        self.folder = None if folder is None else os.fspath(folder)
        self._package = require("wandb", "wandb", "the tracker WandB needs wandb")
        self._run: Any = None
        self._first = 0

    def begin(self, run: TrackedRun) -> None:
        """Start the run there, or go on with it."""
        self._run = self._package.init(
            project=self.project,
            entity=self.entity,
            dir=self.folder,
            id=run.key,
            name=run.name or run.key,
            config=dict(run.config),
            resume="allow",
            reinit="create_new",
        )
        self._first = self._run.step if self._run.resumed else 0

    def log(self, step: int, metrics: Mapping[str, float], time: float) -> None:
        """Write the metrics, if the step is not there yet."""
        if step >= self._first:
            self._run.log({**metrics, "round": step, "time": time}, step=step)

    def end(self, status: str) -> None:
        """Say how the run has ended."""
        self._run.summary["status"] = status
        self._run.finish(exit_code=int(status in ("failed", "stopped")))
