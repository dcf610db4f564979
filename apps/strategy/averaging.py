"""Weighted averages of arrays and of metrics, one reply at a time and independent of the order of arrival."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedq.apps.array import Array
from fedq.apps.arrayrecord import ArrayRecord
from fedq.apps.configrecord import ConfigRecord
from fedq.apps.errors import InconsistentReply
from fedq.apps.metricrecord import MetricRecord
from fedq.apps.outline import named, numpy_of
from fedq.apps.reals import inexact, wider
from fedq.apps.recorddict import RecordDict
from fedq.apps.strategy.errors import CheckpointError
from fedq.apps.strategy.exact_sum import BLOCK, ExactSum, magnitude
from fedq.apps.strategy.partial import read_json

FRACTION_BITS = 40
"""The unit of a sum lies this many bits below the largest value of the array that was sent out."""

_EXACT_INTEGER = float(1 << 53)


class ArrayAverage:
    """The weighted average of ArrayRecords: ``sum(w * x) / sum(w)`` per element.

    Each product is taken in float64 (exact for float32 values and integer weights below 2**29), the products are
    summed exactly and the quotient is rounded once. Hence the result is the same, bit for bit, in whatever order the
    records are added. Memory is one accumulator per array, however many records are added.

    The dtypes of the result are those of ``array * 0.5`` in NumPy: floating and complex types stay (in native byte
    order, those of `ml_dtypes` too), integers and bools become float64. Integers beyond 2**53 are summed exactly as
    well. ``longdouble`` is averaged with the precision of float64. Where the replies' dtypes differ, the widest
    decides.

    Args:
        reference: the record that was sent out. It fixes names and shapes, and its magnitudes place the accumulators.
            Without one the first record added does, and 1.0 is taken for the largest value.
    """

    def __init__(self, reference: Mapping[str, Array] | None = None) -> None:
        self._sums: dict[str, _ArraySum] | None = None
        if reference is not None:
            self._sums = {
                name: _ArraySum.like(array.numpy(copy=False), anchored=True) for name, array in reference.items()
            }
        self._weights: list[float] = []

    @property
    def count(self) -> int:
        """Records added."""
        return len(self._weights)

    @property
    def nbytes(self) -> int:
        """Bytes held by the accumulators."""
        return sum(entry.nbytes for entry in (self._sums or {}).values())

    def add(self, record: Mapping[str, Array], weight: float) -> None:
        """Add one record with a positive finite weight.

        Raises:
            InconsistentReply: names, shapes or kinds of the arrays do not fit, or a value is not finite. Nothing was
                added then.
        """
        # All is checked before anything is added, so that a refused reply leaves no trace.
        sums, terms = self._checked(record, weight)
        for entry, parts in terms:
            for values, largest in parts:
                entry.add(values, weight, largest)
        self._sums = sums
        self._weights.append(weight)

    def check(self, record: Mapping[str, Array], weight: float) -> None:
        """Whether `add` would take a record now.

        Raises:
            InconsistentReply: it would not.
        """
        self._checked(record, weight)

    def _checked(
        self, record: Mapping[str, Array], weight: float
    ) -> tuple[dict[str, _ArraySum], list[tuple[_ArraySum, list[tuple[NDArray[Any], float]]]]]:
        """The sums, and what a record adds to each."""
        sums = self._sums
        if sums is None:
            sums = {name: _ArraySum.like(numpy_of(name, array), anchored=False) for name, array in record.items()}
        if missing := sums.keys() - record.keys():
            raise InconsistentReply(f"its ArrayRecord lacks {named(missing)}")
        if foreign := record.keys() - sums.keys():
            raise InconsistentReply(f"its ArrayRecord has {named(foreign)}, which the model does not have")
        return sums, [
            (entry, entry.checked(name, numpy_of(name, record[name]), weight)) for name, entry in sums.items()
        ]

    def result(self, over: float | None = None) -> ArrayRecord | None:
        """The average so far, or None when nothing was added. `over`: divide by this instead of the weights' sum."""
        if not self._weights or self._sums is None:
            return None
        total = math.fsum(self._weights) if over is None else over
        return ArrayRecord(
            {name: Array.from_numpy_ndarray(entry.average(total), copy=False) for name, entry in self._sums.items()}
        )

    def save(self) -> RecordDict:
        """What was added so far, exactly, for a checkpoint. The arrays are the accumulators themselves: write them
        before the next record is added.
        """
        limbs = ArrayRecord()
        sums = [
            [name, *entry.save(str(place), limbs)] for place, (name, entry) in enumerate((self._sums or {}).items())
        ]
        state = {"sums": None if self._sums is None else sums, "weights": self._weights}
        return RecordDict({"state": ConfigRecord({"json": json.dumps(state)}), "limbs": limbs})

    def load(self, kept: RecordDict) -> None:
        """Take up what `save` gave. Each array is taken out of it as it is copied, so that not all are there twice.

        Raises:
            CheckpointError: it does not read.
        """
        state = read_json(kept, "state")
        try:
            limbs = kept.array_records["limbs"]
            self._weights = [float(weight) for weight in state["weights"]]
            self._sums = None
            if state["sums"] is not None:
                self._sums = {
                    name: _ArraySum.of(str(place), limbs, *told) for place, (name, *told) in enumerate(state["sums"])
                }
        except (KeyError, TypeError, ValueError) as exc:
            raise CheckpointError(f"the checkpoint holds no sum of replies ({exc!r}); start the run anew") from exc


class _ArraySum:
    """The exact weighted sum of arrays of one shape."""

    def __init__(self, shape: tuple[int, ...], is_complex: bool, anchor: int) -> None:
        self.shape = shape
        self.is_complex = is_complex
        self.dtype: np.dtype[Any] | None = None
        self._sum = ExactSum(math.prod(shape) * (2 if is_complex else 1), anchor)

    @classmethod
    def like(cls, array: NDArray[Any], *, anchored: bool) -> _ArraySum:
        largest = 1.0
        if anchored and array.size:
            largest = _largest(_flat(array))
            if not math.isfinite(largest) or largest == 0.0:
                largest = 1.0
        return cls(array.shape, array.dtype.kind == "c", math.frexp(largest)[1] - FRACTION_BITS)

    def save(self, prefix: str, limbs: ArrayRecord) -> tuple[object, ...]:
        """Its accumulators, into `limbs`; and what else `of` is to be told."""
        told = []
        for position, bound, index, value in self._sum.limbs():
            told.append([position, bound, index is None])
            limbs[f"{prefix}.{position}.value"] = Array.from_numpy_ndarray(value[:], copy=False)
            if index is not None:
                limbs[f"{prefix}.{position}.index"] = Array.from_numpy_ndarray(index[:], copy=False)
        if self.dtype is not None:
            limbs[f"{prefix}.dtype"] = Array(np.empty(0, dtype=self.dtype))
        return self.shape, self.is_complex, self._sum.anchor, told

    @classmethod
    def of(
        cls,
        prefix: str,
        limbs: ArrayRecord,
        shape: list[int],
        is_complex: bool,
        anchor: int,
        told: list[tuple[int, int, bool]],
    ) -> _ArraySum:
        """The one that `save` was called of."""
        made = cls(tuple(shape), is_complex, anchor)
        if f"{prefix}.dtype" in limbs:
            made.dtype = limbs.pop(f"{prefix}.dtype").numpy(copy=False).dtype
        for position, bound, dense in told:
            index = None if dense else limbs.pop(f"{prefix}.{position}.index").numpy(copy=False)
            made._sum.add_limb(position, bound, index, limbs.pop(f"{prefix}.{position}.value").numpy(copy=False))
        return made

    @property
    def nbytes(self) -> int:
        return self._sum.nbytes

    def checked(self, name: str, array: NDArray[Any], weight: float) -> list[tuple[NDArray[Any], float]]:
        """The flat real terms of an array, each with its largest weighted magnitude."""
        if array.shape != self.shape:
            raise InconsistentReply(f"its array {name!r} has shape {array.shape} instead of {self.shape}")
        if (array.dtype.kind == "c") != self.is_complex:
            raise InconsistentReply(
                f"its array {name!r} is {array.dtype}, where {_kind(self.is_complex)} numbers were sent"
            )
        flat = _flat(array)
        largest = _largest(flat)
        if not math.isfinite(largest):
            raise InconsistentReply(f"its array {name!r} holds values that are not finite numbers")
        if not math.isfinite(largest * weight):
            raise InconsistentReply(f"its array {name!r} times its weight {weight:g} is beyond the range of float64")
        if flat.dtype.kind in "iu" and largest > _EXACT_INTEGER:
            # float64 cannot hold it: the upper and lower 32 bits are two terms.
            upper = (flat >> 32).astype(np.float64) * float(1 << 32)
            lower = (flat & 0xFFFFFFFF).astype(np.float64)
            return [(upper, 2.0 * largest * weight), (lower, float(1 << 32) * weight)]
        return [(flat, largest * weight)]

    def add(self, flat: NDArray[Any], weight: float, largest: float) -> None:
        averaged = _averaged(flat.dtype, self.is_complex)
        self.dtype = wider(self.dtype, averaged)
        terms = ((start, block if weight == 1.0 else block * weight) for start, block in _blocks(flat))
        self._sum.add_blocks(terms, largest)

    def average(self, total: float) -> NDArray[Any]:
        dtype = self.dtype if self.dtype is not None else np.dtype(np.float64)
        if self.is_complex:
            pairs = self._sum.divided_by(total, np.zeros(0, dtype).real.dtype)
            return pairs.view(dtype).reshape(self.shape)
        return self._sum.divided_by(total, dtype).reshape(self.shape)


def _flat(array: NDArray[Any]) -> NDArray[Any]:
    """One-dimensional in C order; complex numbers as pairs. A view wherever the memory allows it."""
    flat = np.ascontiguousarray(array).reshape(-1)
    if flat.dtype.kind == "c":
        flat = flat.view(np.dtype(f"{flat.dtype.byteorder}f{flat.dtype.itemsize // 2}"))
    return flat


def _largest(flat: NDArray[Any]) -> float:
    """The largest magnitude, 0 for an empty array; infinite if there is a value that is not a number."""
    if flat.dtype in (np.float32, np.float64) and flat.dtype.isnative:
        largest = magnitude(flat)  # without a copy
    else:
        # max() would pass over NaN.
        largest = 0.0
        for _, block in _blocks(flat):
            largest = math.nan if math.isnan(found := magnitude(block)) else max(largest, found)
    return math.inf if math.isnan(largest) else largest


def _blocks(flat: NDArray[Any]) -> Iterator[tuple[int, NDArray[np.float64]]]:
    for start in range(0, flat.size, BLOCK):
        yield start, flat[start : start + BLOCK].astype(np.float64)


def _averaged(dtype: np.dtype[Any], is_complex: bool) -> np.dtype[Any]:
    """The dtype of an average, found by asking NumPy for ``array * 0.5``. `dtype` is that of the real terms."""
    if dtype.isbuiltin == 2:  # of ml_dtypes; NumPy would widen bfloat16 to float32
        return inexact(dtype)
    averaged = (np.zeros(1, dtype=dtype) * 0.5).dtype
    return np.result_type(averaged, np.complex64) if is_complex else averaged


def _kind(is_complex: bool) -> str:
    return "complex" if is_complex else "real"


class MetricAverage:
    """The weighted average of MetricRecords, each metric over the replies that report it.

    Numbers give a number, lists are averaged element by element; results are floats. The key of the weight itself is
    left out. Should replies disagree on whether a metric is a number or on the length of its list, the form that most
    of them use decides (of equally frequent ones the shorter), and the others count as not reporting it.

    Sums are correctly rounded (`math.fsum`), so that the order of the replies does not matter.
    """

    def __init__(self, weighted_by_key: str) -> None:
        self._key = weighted_by_key
        # metric -> its form (-1 for a number, else the length of the list) -> weight and values of each reply
        self._values: dict[str, dict[int, list[tuple[float, tuple[float, ...]]]]] = {}
        self._reports: Counter[str] = Counter()
        self._count = 0

    def add(self, record: Mapping[str, int | float | list[int] | list[float]], weight: float) -> None:
        """Add one record with a positive finite weight."""
        self._count += 1
        for name, value in record.items():
            if name == self._key:
                continue
            form = len(value) if isinstance(value, list) else -1
            numbers = tuple(map(float, value)) if isinstance(value, list) else (float(value),)
            self._values.setdefault(name, {}).setdefault(form, []).append((weight, numbers))
            self._reports[name] += 1

    @property
    def partly_reported(self) -> list[str]:
        """Names of the metrics that some replies reported and others did not, or in another form."""
        return sorted(
            name for name, forms in self._values.items() if self._reports[name] < self._count or len(forms) > 1
        )

    def result(self) -> MetricRecord | None:
        """The averages so far, in alphabetical order, or None when nothing was added."""
        if not self._count:
            return None
        averages = MetricRecord()
        for name in sorted(self._values):
            forms = self._values[name]
            form = min(forms, key=lambda candidate: (-len(forms[candidate]), candidate))
            reports = forms[form]
            total = math.fsum(weight for weight, _ in reports)
            means = [
                math.fsum(weight * numbers[place] for weight, numbers in reports) / total for place in range(abs(form))
            ]
            averages[name] = means[0] if form == -1 else means
        return averages
