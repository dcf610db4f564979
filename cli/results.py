"""A run's outcome as files: final arrays as ``.npz``, metrics as JSON."""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from fedq.cli.output import jsonable

if TYPE_CHECKING:
    from fedq.apps import ArrayRecord, MetricRecord


class Outcome(Protocol):
    """What a run leaves: the result of a strategy, or of a deployed run."""

    arrays: ArrayRecord
    train_metrics_clientapp: dict[int, MetricRecord]
    evaluate_metrics_clientapp: dict[int, MetricRecord]
    evaluate_metrics_serverapp: dict[int, MetricRecord]


def write_arrays(arrays: ArrayRecord, path: Path) -> None:
    """Write the arrays as an ``.npz`` that ``numpy.load`` reads without pickle; whole or not at all.

    Not ``numpy.savez``, whose keyword arguments cannot hold every name (``file`` is one of its own).
    """
    import numpy as np

    def write(file: IO[bytes]) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asanyarray(array.numpy()), allow_pickle=False)

    _whole(path, write)


def write_json(value: Any, path: Path) -> None:
    """Write a JSON document, whole or not at all."""
    text = json.dumps(jsonable(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    _whole(path, lambda file: file.write(text.encode()))


def metrics_of(outcome: Outcome) -> dict[str, dict[str, dict[str, Any]]]:
    """``{"train": {"1": {...}}, "evaluate": {...}, "server": {...}}``, by round."""
    return {
        "train": _by_round(outcome.train_metrics_clientapp),
        "evaluate": _by_round(outcome.evaluate_metrics_clientapp),
        "server": _by_round(outcome.evaluate_metrics_serverapp),
    }


def _by_round(metrics: Mapping[int, MetricRecord]) -> dict[str, dict[str, Any]]:
    return {str(number): dict(metrics[number]) for number in sorted(metrics)}


def _whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(draft, 0o666 & ~umask)
        os.replace(draft, path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise
