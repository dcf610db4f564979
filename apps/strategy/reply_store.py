"""The arrays of all replies of a round, for strategies that need them at once, in bounded memory."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from fedq.apps.array import Array
from fedq.apps.arrayrecord import ArrayRecord
from fedq.apps.outline import Outline
from fedq.apps.reals import Reals, from_reals, inexact, to_reals, wider
from fedq.apps.strategy.folding import ReplyKey

MEMORY_LIMIT = 256 * 2**20
"""Bytes of arrays that are held in memory; what is more lies in a file."""

_BLOCK_BYTES = 16 * 2**20
"""Bytes of a block of columns in float64. Sorting and the like take a few times as much."""


class ReplyStore:
    """The replies of a round as the rows of a matrix: one per reply, one column per real number of the model.

    Rows are written one after the other and read in blocks of columns, all rows at once, in the order of their keys:
    whatever is computed of them does not depend on the order of arrival. Up to `memory_limit` bytes stay in memory;
    beyond it everything lies in a temporary file without a name (in ``TMPDIR``), which is gone with the process.

    Args:
        sent: the model that was sent; it fixes names and shapes. Without one the first reply does.
        memory_limit: bytes.
    """

    def __init__(self, sent: Mapping[str, Array] | None, memory_limit: int = MEMORY_LIMIT) -> None:
        self._outline = None if sent is None else Outline(sent)
        # 0 would mean no limit there.
        limit = max(1, memory_limit)
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=limit)  # noqa: SIM115 - closed by close()
        self._end = 0
        self._rows: list[_Row] = []
        self._dtypes: dict[str, np.dtype[Any]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of everything."""
        self._file.close()

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def order(self) -> list[int]:
        """The places of the rows, counted from 0 as they were added, in the order of their keys."""
        return sorted(range(len(self._rows)), key=lambda place: (self._rows[place].key, place))

    def add(self, key: ReplyKey, arrays: Mapping[str, Array], weight: float) -> None:
        """Add a reply.

        Raises:
            InconsistentReply: its arrays do not fit the model, see `Outline`. Nothing was added then.
        """
        if self._outline is None:
            outline = Outline(arrays)
            checked = outline.checked(arrays)
            self._outline = outline
        else:
            checked = self._outline.checked(arrays)
        row = _Row(key, weight)
        self._file.seek(self._end)
        for name, array in checked.items():
            row.parts[name] = (self._end, array.dtype)
            self._end += self._file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            self._dtypes[name] = wider(self._dtypes.get(name), inexact(array.dtype))
        self._rows.append(row)

    def weight(self, place: int) -> float:
        """The weight of a row."""
        return self._rows[place].weight

    def record(self, place: int) -> ArrayRecord:
        """The arrays of a row, as they came."""
        assert self._outline is not None
        made = ArrayRecord()
        for name, (shape, _) in self._outline.arrays.items():
            _, dtype = self._rows[place].parts[name]
            flat = self._read(place, name, 0, int(np.prod(shape, dtype=np.int64)))
            made[name] = Array.from_numpy_ndarray(flat.view(dtype).reshape(shape), copy=False)
        return made

    def combined(self, combine: Callable[[Reals], Reals], places: Sequence[int] | None = None) -> ArrayRecord:
        """The record that `combine` makes of the rows, column by column.

        Args:
            combine: from a float64 matrix (rows, columns) to one value per column; it may change the matrix. Called
                once per block.
            places: the rows, all of them in the order of their keys if None.

        Returns:
            Arrays of the widest dtype of the rows; integers and bools become float64.
        """
        assert self._outline is not None
        places = self.order if places is None else places
        made = ArrayRecord()
        for name, (shape, is_complex) in self._outline.arrays.items():
            size = int(np.prod(shape, dtype=np.int64)) * (2 if is_complex else 1)
            values = np.empty(size, dtype=np.float64)
            for start, block in self._blocks(name, places):
                values[start : start + block.shape[1]] = combine(block)
            made[name] = Array.from_numpy_ndarray(from_reals(values, self._dtypes[name], shape), copy=False)
        return made

    def squared_distances(self) -> Reals:
        """The squared Euclidean distances of the rows from each other, in the order of their keys: (rows, rows).

        Takes rows ** 2 * columns / 2 operations. Differences are taken first and squared then, so that rows that are
        equal have the distance 0 and near ones lose no digits.
        """
        assert self._outline is not None
        places = self.order
        total = np.zeros((len(places), len(places)), dtype=np.float64)
        with np.errstate(over="ignore"):  # an attacker's values may be huge: their distance is infinite then
            for name in self._outline.arrays:
                for _, block in self._blocks(name, places):
                    for row in range(len(places) - 1):
                        difference = block[row + 1 :] - block[row]
                        total[row, row + 1 :] += np.einsum("ij,ij->i", difference, difference)
        return total + total.T

    def _blocks(self, name: str, places: Sequence[int]) -> Iterator[tuple[int, Reals]]:
        """The columns of an array in blocks, each with its first column."""
        assert self._outline is not None
        shape, is_complex = self._outline.arrays[name]
        size = int(np.prod(shape, dtype=np.int64))
        step = max(1, _BLOCK_BYTES // (16 * max(1, len(places))))
        for start in range(0, size, step):
            stop = min(start + step, size)
            block = np.stack([to_reals(self._read(place, name, start, stop)) for place in places])
            yield start * (2 if is_complex else 1), block

    def _read(self, place: int, name: str, start: int, stop: int) -> NDArray[Any]:
        offset, dtype = self._rows[place].parts[name]
        self._file.seek(offset + start * dtype.itemsize)
        content = self._file.read((stop - start) * dtype.itemsize)
        return np.frombuffer(content, dtype=np.uint8).view(dtype)


class _Row:
    """Where the arrays of a reply begin, and their dtypes."""

    __slots__ = ("key", "parts", "weight")

    def __init__(self, key: ReplyKey, weight: float) -> None:
        self.key = key
        self.weight = weight
        self.parts: dict[str, tuple[int, np.dtype[Any]]] = {}
