"""Clipping of model updates, and noise: what strategies at the server and mods at the nodes share."""

from __future__ import annotations

import math

import numpy as np

from fedq.apps.array import Array
from fedq.apps.arrayrecord import ArrayRecord
from fedq.apps.outline import Outline
from fedq.apps.reals import from_reals, inexact, norm, to_reals

KEY_CLIPPING_NORM = "clipping_norm"
"""Name of the clipping norm in the config of a training message."""

KEY_NORM_BIT = "norm_bit"
"""Name of the metric by which a node says whether its update was clipped: 1 or 0."""


def clip_update(sent: ArrayRecord, trained: ArrayRecord, clipping_norm: float) -> tuple[ArrayRecord, bool]:
    """``sent + update * min(1, clipping_norm / ||update||)`` for ``update = trained - sent``, and whether it was less.

    The norm is the Euclidean one of all arrays taken as one vector ("flat clipping": H. B. McMahan et al., "Learning
    Differentially Private Recurrent Language Models", 2017, https://arxiv.org/abs/1710.06963). Computed in float64;
    an update within the norm comes back bit by bit as it was. Integers and bools become float64 when clipped.

    Raises:
        InconsistentReply: names or shapes differ, or a value is not finite.
    """
    outline = Outline(sent)
    arrays = outline.checked(trained)
    length = update_norm(sent, trained)
    if length <= clipping_norm:
        return trained, False
    factor = clipping_norm / length  # 0 for an update so long that its norm is beyond float64
    clipped = ArrayRecord()
    for name, array in arrays.items():
        start = to_reals(sent[name].numpy(copy=False))
        with np.errstate(over="ignore", invalid="ignore"):
            update = (to_reals(array) - start) * factor
        values = start + np.where(np.isfinite(update), update, 0.0)
        clipped[name] = Array.from_numpy_ndarray(from_reals(values, inexact(array.dtype), array.shape), copy=False)
    return clipped, True


def update_norm(sent: ArrayRecord, trained: ArrayRecord) -> float:
    """``||trained - sent||``; infinite where it is beyond float64. Names and shapes must agree."""
    with np.errstate(over="ignore"):
        return norm(
            to_reals(trained[name].numpy(copy=False)) - to_reals(array.numpy(copy=False))
            for name, array in sent.items()
        )


def rounding_of(trained: ArrayRecord) -> float:
    """How far arrays may lie, in the Euclidean norm, from what they were before they were rounded to their dtype."""
    squares = []
    for array in trained.values():
        values = array.numpy(copy=False)
        squares.append((norm([to_reals(values)]) * _epsilon(values.dtype)) ** 2)
    return math.sqrt(math.fsum(squares))


def add_gaussian_noise(arrays: ArrayRecord, deviation: float, generator: np.random.Generator) -> ArrayRecord:
    """The arrays with independent normal noise of mean 0 and this standard deviation added to each real number.

    Added in float64, then rounded to the dtype; integers and bools become float64. A deviation of 0 adds nothing.
    """
    if deviation == 0.0:
        return arrays
    noised = ArrayRecord()
    for name, array in arrays.items():
        values = array.numpy(copy=False)
        reals = to_reals(values)
        reals += generator.normal(0.0, deviation, reals.size)
        noised[name] = Array.from_numpy_ndarray(from_reals(reals, inexact(values.dtype), values.shape), copy=False)
    return noised


def _epsilon(dtype: np.dtype[np.generic]) -> float:
    """The relative distance of neighbouring numbers; found by halving, since NumPy's finfo does not know ml_dtypes."""
    if dtype.kind in "iub":
        return 0.0
    one, step = np.ones((), dtype=dtype), 1.0
    while (np.asarray(1.0 + step / 2.0).astype(dtype) != one).all() and step > 2.0**-60:
        step /= 2.0
    return step
