"""A run's outcome as files: final arrays as ``.npz``, what is told of it as JSON."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from fedq.apps.files import write_whole
from fedq.cli.output import jsonable

if TYPE_CHECKING:
    from fedq.apps import ArrayRecord


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

    write_whole(path, write)


def write_json(value: Any, path: Path) -> None:
    """Write a JSON document, whole or not at all."""
    text = json.dumps(jsonable(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(path, lambda file: file.write(text.encode()))
