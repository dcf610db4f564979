"""MLflow: a run in the store of a tracking server, a database or a folder."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar

from fedq.apps.extras import require
from fedq.apps.tracking.tracker import TrackedRun

T = TypeVar("T")

TAG = "fedq.run"
"""The tag of an MLflow run that holds the key of ours."""

_STATUS = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
_MOST_PARAMS, _MOST_METRICS = 100, 1000  # that a tracking server takes at once
_LONGEST_PARAM, _LONGEST_NAME = 6000, 250


class MLflow:
    """Writes the metrics and, as parameters, the config, with mlflow or mlflow-skinny.

    A run that is tracked again is continued, as the MLflow run that has its key as the tag ``fedq.run``; points that
    are there are not written again. What MLflow does not allow in a name becomes ``_``.

    Args:
        uri: the tracking server or store: ``http://…``, ``sqlite:///mlflow.db``, ``databricks``. None: as
            MLFLOW_TRACKING_URI says. For a database MLflow needs SQLAlchemy, which ``mlflow`` brings and
            ``mlflow-skinny`` does not.
        experiment: the experiment's name; it is made if there is none. None: as MLFLOW_EXPERIMENT_NAME says, or "fedq".

    Raises:
        MissingExtra: MLflow is not installed.
    """

    def __init__(self, uri: str | None = None, *, experiment: str | None = None) -> None:
        self.uri = uri
        self.experiment = experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "fedq"
        self._package = require("mlflow", "mlflow", "the tracker MLflow needs mlflow-skinny or mlflow")
        self._client: Any = None
        self._run_id = ""
        self._continued = False
        self._there: dict[str, set[int]] = {}

    def begin(self, run: TrackedRun) -> None:
        """Find the run in the store, or make it."""
        self._client = self._package.MlflowClient(tracking_uri=self.uri)
        found = self._client.get_experiment_by_name(self.experiment)
        experiment = found.experiment_id if found is not None else self._client.create_experiment(self.experiment)
        runs = self._client.search_runs([experiment], f"tags.`{TAG}` = '{run.key}'", max_results=1)
        self._continued = bool(runs)
        if runs:
            self._run_id = runs[0].info.run_id
            self._client.update_run(self._run_id, status="RUNNING")
            return
        made = self._client.create_run(experiment, run_name=run.name or run.key, tags={TAG: run.key})
        self._run_id = made.info.run_id
        entities = self._package.entities
        params = [entities.Param(_name(key), str(value)[:_LONGEST_PARAM]) for key, value in run.config.items()]
        for part in _parts(params, _MOST_PARAMS):
            self._client.log_batch(self._run_id, params=part)

    def log(self, step: int, metrics: Mapping[str, float], time: float) -> None:
        """Write the metrics that are not there yet."""
        new = [
            self._package.entities.Metric(name, float(value), int(time * 1000), step)
            for name, value in ((_name(name), value) for name, value in metrics.items())
            if step not in self._steps(name)
        ]
        for part in _parts(new, _MOST_METRICS):
            self._client.log_batch(self._run_id, metrics=part)

    def end(self, status: str) -> None:
        """Say how the run has ended; one that goes on stays as running."""
        if status in _STATUS:
            self._client.set_terminated(self._run_id, status=_STATUS[status])

    def _steps(self, name: str) -> set[int]:
        """The steps at which a continued run has this metric."""
        if not self._continued:
            return set()
        if name not in self._there:
            self._there[name] = {point.step for point in self._client.get_metric_history(self._run_id, name)}
        return self._there[name]


def _name(name: str) -> str:
    """A name as MLflow takes it: it is also a path, so no part of it may be empty or dots alone."""
    parts = [re.sub(r"[^\w\-. ]", "_", part, flags=re.ASCII) for part in name.split("/")]
    return "/".join(part if part.strip(".") else f"_{part}" for part in parts)[:_LONGEST_NAME]


def _parts(items: Sequence[T], most: int) -> Iterator[list[T]]:
    rest = iter(items)
    while part := list(islice(rest, most)):
        yield part
