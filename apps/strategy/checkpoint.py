"""What a strategy keeps in the ServerApp's Context after each round, and takes up again."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from fedq.apps.arrayrecord import ArrayRecord
from fedq.apps.configrecord import ConfigRecord
from fedq.apps.grid import JSON, Grid
from fedq.apps.recorddict import RecordDict
from fedq.apps.strategy.errors import CheckpointError
from fedq.apps.strategy.metrics_log import MetricsLog
from fedq.apps.strategy.result import Result


@dataclass
class Progress:
    """How far a strategy has come.

    Attributes:
        round: the last that is over.
        result: the model, and the metrics so far.
        state: what the strategy keeps besides, as of the end of that round.
        unfinished: what there is of the next round, where a checkpoint was written in the midst of it.
        failed_rounds: the training rounds since the last that had a usable reply.
        last_failure: why its last reply was not.
    """

    round: int
    result: Result
    state: RecordDict = field(default_factory=RecordDict)
    unfinished: RecordDict = field(default_factory=RecordDict)
    failed_rounds: int = 0
    last_failure: str = ""


class Checkpoint:
    """The records ``strategy-<n>``, ``strategy-<n>.arrays``, ``strategy-<n>.history``, ``strategy-<n>.state.*`` and, in
    the midst of a round, ``strategy-<n>.unfinished.*`` in a Context's state.

    Args:
        grid: where the Context is; without one nothing is kept.
        strategy: the strategy's name, which a checkpoint must agree with.
        number: of the strategy within its run, counted from 1.
    """

    def __init__(self, grid: Grid, strategy: str, number: int) -> None:
        self._grid = grid
        self._strategy = strategy
        self._name = f"strategy-{number}"
        self._metrics = MetricsLog()

    def first(self, arrays: ArrayRecord) -> Progress:
        """The progress before the first round."""
        return Progress(0, Result(arrays=arrays))

    def read(self) -> Progress | None:
        """The progress in the Context, or None."""
        context = self._grid.context
        if context is None or self._name not in context.state:
            return None
        record, arrays = context.state[self._name], context.state.get(f"{self._name}.arrays")
        sealed = context.state.get(f"{self._name}.history", ArrayRecord())
        if not (
            isinstance(record, ConfigRecord) and isinstance(arrays, ArrayRecord) and isinstance(sealed, ArrayRecord)
        ):
            raise self._foreign("it is incomplete")
        if record.get("strategy") != self._strategy:
            raise self._foreign(f"it was written by {record.get('strategy')!r}")
        try:
            result = Result(arrays)
            if record["segments"] != len(sealed):
                raise ValueError(f"{len(sealed)} of {record['segments']!r} segments of its history are there")
            self._metrics.read(str(record["history"]), sealed, result)
            progress = Progress(
                round=int(str(record["round"])),
                result=result,
                failed_rounds=int(str(record["failed-rounds"])),
                last_failure=str(record["last-failure"]),
            )
        except (LookupError, TypeError, ValueError) as exc:
            raise self._foreign(f"it does not read: {exc}") from exc
        for prefix, records in self._several(progress):
            for name, kept in context.state.items():
                if name.startswith(prefix):
                    records[name.removeprefix(prefix)] = kept
        return progress

    def write(self, progress: Progress, folded: Iterable[str]) -> None:
        """Put the progress into the Context and have it saved, with the messages that went into it."""
        context = self._grid.context
        if context is None:
            return
        self._metrics.write(progress.result)
        context.state[self._name] = ConfigRecord(
            {
                "strategy": self._strategy,
                "round": progress.round,
                "failed-rounds": progress.failed_rounds,
                "last-failure": progress.last_failure,
                "history": self._metrics.open,
                "segments": len(self._metrics.sealed),
            }
        )
        context.state[f"{self._name}.arrays"] = progress.result.arrays
        if self._metrics.sealed:
            context.state[f"{self._name}.history"] = self._metrics.sealed
        for prefix, records in self._several(progress):
            for name in [name for name in context.state if name.startswith(prefix)]:
                if name.removeprefix(prefix) not in records:
                    del context.state[name]
            for name, record in records.items():
                context.state[f"{prefix}{name}"] = record
        context.save(folded=folded)

    def _several(self, progress: Progress) -> Iterator[tuple[str, RecordDict]]:
        yield f"{self._name}.state.", progress.state
        yield f"{self._name}.unfinished.", progress.unfinished

    def _foreign(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"the checkpoint {self._name!r} cannot be continued by {self._strategy}: {what}; start the run anew",
            run_id=self._grid.run_id,
        )


def finite(metrics: Mapping[str, object] | None) -> JSON:
    """Metrics as JSON: numbers that JSON does not have become None."""
    if metrics is None:
        return None
    return {name: _finite(value) for name, value in metrics.items()}


def _finite(value: object) -> JSON:
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, int):
        return value
    return value if isinstance(value, float) and math.isfinite(value) else None
