"""What optimizers at the server keep from round to round, and how they step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fedq.apps.array import Array
from fedq.apps.arrayrecord import ArrayRecord
from fedq.apps.reals import Reals, from_reals, to_reals
from fedq.apps.recorddict import RecordDict
from fedq.apps.strategy.errors import CheckpointError

Step = Callable[[str, Reals, Reals], Reals]


def stepped(sent: ArrayRecord, average: ArrayRecord, step: Step) -> ArrayRecord:
    """The model that `step` makes, array by array, of the model sent and the average of the replies.

    `step` is called with the name and both arrays as flat float64 vectors. The results get the dtypes of the average.
    Its names and shapes are those of the model sent: the average made sure of it.
    """
    made = ArrayRecord()
    for name, array in average.items():
        mean = array.numpy(copy=False)
        values = step(name, to_reals(sent[name].numpy(copy=False)), to_reals(mean))
        made[name] = Array.from_numpy_ndarray(from_reals(values, mean.dtype, mean.shape), copy=False)
    return made


class Moments:
    """Vectors by name, one per array of the model, zero at first.

    They have the dtype of their array, at least float32: squares of half-precision numbers would vanish.

    Args:
        name: of the record that holds them in a checkpoint.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._arrays = ArrayRecord()

    def get(self, name: str, size: int) -> Reals:
        """A copy of the vector of an array; zeros of this size when there is none."""
        if name not in self._arrays:
            return np.zeros(size, dtype=np.float64)
        values = to_reals(self._arrays[name].numpy(copy=False))
        if values.size != size:
            raise CheckpointError(f"{self._name} of {name!r} belongs to a model of another shape; start the run anew")
        return values

    def put(self, name: str, values: Reals, like: Array) -> None:
        """Keep the vector of an array. Of `like` shape and dtype are taken."""
        array = like.numpy(copy=False)
        kept = from_reals(values, _at_least_single(array.dtype), array.shape)
        self._arrays[name] = Array.from_numpy_ndarray(kept, copy=False)

    def save(self) -> dict[str, ArrayRecord]:
        """The record for a checkpoint, or nothing while there are no vectors."""
        # The record is filled anew in the next round, while the checkpoint may still be in use.
        return {self._name: ArrayRecord(dict(self._arrays))} if self._arrays else {}

    def load(self, state: RecordDict) -> None:
        """Take up what `save` gave."""
        record = state.get(self._name, ArrayRecord())
        if not isinstance(record, ArrayRecord):
            raise CheckpointError(f"the checkpoint holds no {self._name}; start the run anew")
        self._arrays = ArrayRecord(dict(record))


def _at_least_single(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return dtype if dtype.kind in "fc" and dtype.itemsize >= 4 else np.dtype(np.float32)
