"""What the arrays of a reply must have in common with those of the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedq.apps.array import Array
from fedq.apps.errors import InconsistentReply
from fedq.apps.reals import to_reals

_BLOCK = 65_536  # elements that are looked at together


class Outline:
    """Names and shapes of the arrays of a model, and which of them are complex."""

    def __init__(self, model: Mapping[str, Array]) -> None:
        self.arrays: dict[str, tuple[tuple[int, ...], bool]] = {
            name: (tuple(array.shape), numpy_of(name, array).dtype.kind == "c") for name, array in model.items()
        }

    def checked(self, record: Mapping[str, Array]) -> dict[str, NDArray[Any]]:
        """The arrays of a record in the order of the model's, as read-only views.

        Raises:
            InconsistentReply: names, shapes or kinds differ from the model's, or a value is not finite.
        """
        if missing := self.arrays.keys() - record.keys():
            raise InconsistentReply(f"its ArrayRecord lacks {named(missing)}")
        if foreign := record.keys() - self.arrays.keys():
            raise InconsistentReply(f"its ArrayRecord has {named(foreign)}, which the model does not have")
        arrays = {}
        for name, (shape, is_complex) in self.arrays.items():
            array = numpy_of(name, record[name])
            if array.shape != shape:
                raise InconsistentReply(f"its array {name!r} has shape {array.shape} instead of {shape}")
            if (array.dtype.kind == "c") != is_complex:
                sent = "complex" if is_complex else "real"
                raise InconsistentReply(f"its array {name!r} is {array.dtype}, where {sent} numbers were sent")
            flat = array.reshape(-1)
            blocks = (flat[start : start + _BLOCK] for start in range(0, flat.size, _BLOCK))
            if not all(np.isfinite(to_reals(block)).all() for block in blocks):
                raise InconsistentReply(f"its array {name!r} holds values that are not finite numbers")
            arrays[name] = array
        return arrays


def named(names: set[str]) -> str:
    """Up to three of the names, and how many more there are."""
    shown = ", ".join(repr(name) for name in sorted(names)[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown


def numpy_of(name: str, array: Array) -> NDArray[Any]:
    """The array as a read-only view.

    Raises:
        InconsistentReply: NumPy cannot read it.
    """
    try:
        return array.numpy(copy=False)
    except (TypeError, ValueError) as exc:
        raise InconsistentReply(f"its array {name!r} is not one that NumPy can read: {exc}") from exc
