"""Arrays as flat vectors of real numbers in float64, for the arithmetic of strategies and mods."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Reals = NDArray[np.float64]


def to_reals(array: NDArray[Any]) -> Reals:
    """The elements in C order as float64; a complex number becomes two. Always a new array, which may be changed."""
    if array.dtype.kind == "c":
        return array.astype(np.complex128, order="C").reshape(-1).view(np.float64)
    return array.astype(np.float64, order="C").reshape(-1)


def from_reals(values: Reals, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """The array of this dtype and shape whose elements `to_reals` gave. Rounds to nearest."""
    flat = values.view(np.complex128) if dtype.kind == "c" else values
    # Values beyond the range of a narrow dtype become infinite, as in NumPy's own arithmetic.
    with np.errstate(over="ignore"):
        return flat.astype(dtype).reshape(shape)


def from_reals_in_range(values: Reals, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """As `from_reals`; in double precision where that dtype would make a finite value infinite.

    For models that later ones are made of: an infinite number in them would never go away.
    """
    made = from_reals(values, dtype, shape)
    if np.isfinite(made).all() or not np.isfinite(values).all():
        return made
    return from_reals(values, np.dtype(np.complex128 if dtype.kind == "c" else np.float64), shape)


def inexact(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype itself, in native byte order, if it holds fractions, else float64."""
    if dtype.isbuiltin == 2:  # of ml_dtypes, which has integers too
        holds_halves = float(np.full(1, 0.5).astype(dtype).astype(np.float64)[0]) == 0.5
        return dtype if holds_halves else np.dtype(np.float64)
    return np.dtype(np.float64) if dtype.kind in "iub" else dtype.newbyteorder("=")


def wider(one: np.dtype[Any] | None, other: np.dtype[Any]) -> np.dtype[Any]:
    """A dtype that holds what both hold; float64 where there is none."""
    if one is None or one == other:
        return other
    try:
        return np.promote_types(one, other)
    except TypeError:  # of ml_dtypes, without a common one
        return np.dtype(np.float64)


def norm(vectors: Iterable[Reals]) -> float:
    """The Euclidean norm of the vectors taken as one. Infinite or NaN if an element is."""
    with np.errstate(over="ignore"):  # the squares may be beyond float64 although the values are not
        return math.sqrt(math.fsum(float(np.dot(vector, vector)) for vector in vectors))
