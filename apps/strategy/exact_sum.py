"""Sums of float64 arrays that do not depend on the order of their terms, bit for bit.

Floating-point addition rounds, so that a plain running sum changes with the order in which replies arrive. Here every
element is accumulated as an integer in fixed point, in *limbs*: limb ``i`` counts multiples of
``2 ** (anchor + 46 * i)`` in an int64. A float64 is an integer times a power of two, hence each term splits into limbs
without any rounding and the sum is exact; limbs come into being when a term has bits there, so nothing is ever dropped.

Most terms of a model fit one limb when `anchor` lies 40 bits below the largest value expected: the few that are much
smaller than the largest have a remainder, which the limb below keeps sparsely (index, value) until it is worth a dense
array. The cost is therefore about 8 bytes per element for float16 and float32 values times integer weights, and 16 for
float64.

The idea of cutting terms at fixed positions is that of reproducible summation: J. Demmel, H. D. Nguyen, "Parallel
Reproducible Summation", IEEE Transactions on Computers 64 (2015); the long integer accumulator goes back to U. Kulisch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

LIMB_BITS = 46
"""Distance of two limbs in bits: an int64 limb then holds at least 2**16 remainders before it must carry."""

BLOCK = 8_192
"""Elements that are worked on at a time: temporaries stay in the cache, and below what malloc asks the system for."""

_HALF = 1 << (LIMB_BITS - 1)
_TOP_BITS = 61  # the largest piece that a single term may put into a limb
_ROOM = 1 << 62  # what a limb may hold in magnitude; int64 itself ends at 2**63
_LOWEST = -1074  # no float64 has a bit below


class ExactSum:
    """The exact element-wise sum of float64 arrays of one size.

    Args:
        size: number of elements.
        anchor: exponent of the unit of limb 0. A matter of speed and memory; for equal terms it must be the same for
            the result to have the same bits.
    """

    def __init__(self, size: int, anchor: int) -> None:
        self.size = size
        self.anchor = anchor
        self._limbs: dict[int, _Limb] = {}

    @property
    def nbytes(self) -> int:
        """Bytes held by the accumulator."""
        return sum(limb.nbytes for limb in self._limbs.values())

    def add(self, term: NDArray[np.float64], largest: float | None = None) -> None:
        """Add a flat float64 array of `size` finite elements.

        Args:
            term: the values; not kept, not changed.
            largest: an upper bound of their magnitudes, when known.

        Raises:
            ValueError: the size differs or an element is not finite; the sum is unchanged then.
        """
        if term.shape != (self.size,):
            raise ValueError(f"a term of shape {term.shape} cannot be added to a sum of {self.size} elements")
        if largest is None:
            largest = magnitude(term)
        self.add_blocks(((start, term[start : start + BLOCK]) for start in range(0, self.size, BLOCK)), largest)

    def add_blocks(self, blocks: Iterator[tuple[int, NDArray[np.float64]]], largest: float) -> None:
        """Add one term given as (start, values) blocks. `largest` bounds the magnitudes and must be finite."""
        if not math.isfinite(largest):
            raise ValueError("only finite values can be summed exactly")
        if largest == 0.0:
            return
        bits = math.frexp(largest)[1]  # every magnitude is below 2**bits
        top = max(0, -((_TOP_BITS + self.anchor - bits) // LIMB_BITS)) if bits > self.anchor else self._limb_of(bits)
        self._room(top, 1 << max(0, min(_TOP_BITS, bits - self._exponent(top))))
        touched = {top}

        def below(position: int) -> int:
            if position - 1 not in touched:
                self._room(position - 1, 1 << LIMB_BITS)
                touched.add(position - 1)
            return position - 1

        cut, upper = _Cut(self._exponent(top), min(self.size, BLOCK)), self._limb(top)
        for start, values in blocks:
            position = top
            whole, multiples, left_over = cut.split(values)
            upper.add_dense(start, whole)
            some = np.count_nonzero(left_over)
            if not some:
                continue
            if some * 8 > values.size:
                rest = values - multiples
                while np.count_nonzero(rest) * 8 > rest.size:
                    position = below(position)
                    whole, rest = _split(rest, self._exponent(position))
                    self._limb(position).add_dense(start, whole)
                index = np.flatnonzero(rest)
                rest = rest[index]
            else:
                index = np.flatnonzero(left_over)
                rest = values[index] - multiples[index]
            index += start
            while index.size:
                position = below(position)
                whole, rest = _split(rest, self._exponent(position))
                self._limb(position).add_sparse(index, whole)
                left = np.flatnonzero(rest)
                index, rest = index[left], rest[left]
        for position in touched:
            self._limb(position).settle()

    def divided_by(self, divisor: float, dtype: DTypeLike = np.float64) -> NDArray[Any]:
        """The sum divided by `divisor`, rounded to float64 (error below 2 units in the last place), then to `dtype`.

        The same terms give the same bits in whatever order they were added.
        """
        result = np.zeros(self.size, dtype=dtype)
        if not self._limbs:
            return result
        for start in range(0, self.size, BLOCK):
            stop = min(start + BLOCK, self.size)
            result[start:stop] = self._rounded(start, stop, divisor)
        return result

    def limbs(self) -> Iterator[tuple[int, int, NDArray[np.int64] | None, NDArray[np.int64]]]:
        """What it consists of, for `add_limb` of another: position and bound of each limb; the indices of its values,
        or None where it has one for each element; the values. The arrays are its own: the next term changes them.
        """
        for position in sorted(self._limbs):
            limb = self._limbs[position]
            limb.settle()
            if limb.dense is not None:
                yield position, limb.bound, None, limb.dense
            else:
                yield position, limb.bound, limb.index, limb.value

    def add_limb(self, position: int, bound: int, index: NDArray[np.int64] | None, value: NDArray[np.int64]) -> None:
        """Take up what `limbs` of a sum of the same size and anchor gave; the arrays are copied.

        Raises:
            ValueError: it cannot be of such a sum.
        """
        length = self.size if index is None else index.size
        if value.shape != (length,) or value.dtype != np.int64 or not 0 <= bound <= _ROOM:
            raise ValueError(f"limb {position} does not fit a sum of {self.size} elements")
        if index is not None and (
            index.dtype != np.int64
            or np.any(index[1:] <= index[:-1])
            or (index.size and not 0 <= index[0] <= index[-1] < self.size)
        ):
            raise ValueError(f"limb {position} has indices that are none of a sum of {self.size} elements")
        limb = _Limb(self.size)
        limb.bound = bound
        if index is None:
            limb.dense = np.array(value)
        else:
            limb.index, limb.value = np.array(index), np.array(value)
        self._limbs[position] = limb

    def _rounded(self, start: int, stop: int, divisor: float) -> NDArray[np.float64]:
        # Digits in [-2**45, 2**45) at fixed positions are unique to a number, so whatever is computed from them depends
        # on the exact sum alone and not on how the limbs came to hold it.
        digits: dict[int, NDArray[np.int64]] = {}
        carry: NDArray[np.int64] | None = None
        position = min(self._limbs)
        last = max(self._limbs)
        while position <= last or carry is not None:
            limb = self._limbs.get(position)
            value = limb.block(start, stop) if limb is not None else None
            if carry is not None:
                value = carry if value is None else value + carry
                carry = None
            if value is not None:
                if value.min() < -_HALF or value.max() >= _HALF:  # mostly not, and then nothing is to be carried
                    high = _carry_of(value)
                    value, carry = value - (high << LIMB_BITS), high
                if value.any():
                    digits[position] = value
            position += 1
        used = sorted(digits)
        if not used:
            return np.zeros(stop - start, dtype=np.float64)
        if self._exponent(used[-1]) + LIMB_BITS <= 1000:
            return self._total(digits, used, 0) / divisor
        # The sum of an element may lie above the float64 range although its quotient does not.
        with np.errstate(over="ignore", invalid="ignore"):
            plain = self._total(digits, used, 0) / divisor
            scaled = np.ldexp(self._total(digits, used, 200) / divisor, 200)
        return np.where(np.isfinite(plain), plain, scaled)

    def _total(self, digits: dict[int, NDArray[np.int64]], used: list[int], scale: int) -> NDArray[np.float64]:
        """The number that the digits make, times 2**-scale, from the smallest digit up."""
        total = np.zeros(digits[used[0]].size, dtype=np.float64)
        for position in used:
            total += _scaled(digits[position].astype(np.float64), self._exponent(position) - scale)
        return total

    def _exponent(self, position: int) -> int:
        return self.anchor + position * LIMB_BITS

    def _limb_of(self, bits: int) -> int:
        return -((_TOP_BITS + self.anchor - bits) // LIMB_BITS)

    def _limb(self, position: int) -> _Limb:
        limb = self._limbs.get(position)
        if limb is None:
            limb = self._limbs[position] = _Limb(self.size)
        return limb

    def _room(self, position: int, more: int) -> None:
        """Make sure that the limb can take one more term of magnitude up to `more` in each element."""
        limb = self._limb(position)
        if limb.bound + more > _ROOM:
            high_bound = (limb.bound >> LIMB_BITS) + 1
            self._room(position + 1, high_bound)
            limb.carry_into(self._limb(position + 1))
        limb.bound += more


class _Limb:
    """One int64 per element: sparse while few are not zero, then dense. `bound` limits every magnitude in it."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.bound = 0
        self.dense: NDArray[np.int64] | None = None
        self.index: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self.value: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._pending: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        self._waiting = 0

    @property
    def nbytes(self) -> int:
        return self.index.nbytes + self.value.nbytes + (0 if self.dense is None else self.dense.nbytes)

    def add_dense(self, start: int, values: NDArray[np.int64]) -> None:
        self._made_dense()[start : start + values.size] += values

    def add_sparse(self, index: NDArray[np.int64], values: NDArray[np.int64]) -> None:
        """Add at ascending indices without repetition. `settle` comes before anything is read."""
        self._pending.append((index, values))
        self._waiting += index.size
        if self.dense is not None or (self.index.size + self._waiting) * 8 > self.size:
            self._made_dense()

    def settle(self) -> None:
        """Take in what `add_sparse` has put aside."""
        if not self._pending:
            return
        joined = np.concatenate([self.index, *(index for index, _ in self._pending)])
        values = np.concatenate([self.value, *(values for _, values in self._pending)])
        self._pending.clear()
        self._waiting = 0
        order = np.argsort(joined, kind="stable")
        joined = joined[order]
        first = np.flatnonzero(np.concatenate((np.ones(1, dtype=bool), joined[1:] != joined[:-1])))
        self.value = np.add.reduceat(values[order], first)
        self.index = joined[first]

    def block(self, start: int, stop: int) -> NDArray[np.int64] | None:
        """These elements; None where all are zero and none is kept."""
        if self.dense is not None:
            return self.dense[start:stop]
        low, high = np.searchsorted(self.index, (start, stop))
        if low == high:
            return None
        out = np.zeros(stop - start, dtype=np.int64)
        out[self.index[low:high] - start] = self.value[low:high]
        return out

    def carry_into(self, upper: _Limb) -> None:
        """Move all but the low 46 bits of every element into the next limb. The sum of both is unchanged."""
        self.settle()
        if self.dense is None:
            high = _carry_of(self.value)
            self.value -= high << LIMB_BITS
            some = np.flatnonzero(high)
            if some.size:
                upper.add_sparse(self.index[some], high[some])
        else:
            for start in range(0, self.size, BLOCK):
                part = self.dense[start : start + BLOCK]
                high = _carry_of(part)
                part -= high << LIMB_BITS
                some = np.flatnonzero(high)
                if some.size:
                    upper.add_sparse(some + start, high[some])
        upper.settle()
        self.bound = 1 << LIMB_BITS

    def _made_dense(self) -> NDArray[np.int64]:
        if self.dense is None:
            self.dense = np.zeros(self.size, dtype=np.int64)
            self._pending.append((self.index, self.value))
            self.index = self.value = np.zeros(0, dtype=np.int64)
        for index, values in self._pending:
            self.dense[index] += values
        self._pending.clear()
        self._waiting = 0
        return self.dense


class _Cut:
    """Splits blocks of at most `size` elements into whole multiples of ``2**exponent`` and what is left over."""

    def __init__(self, exponent: int, size: int) -> None:
        self._exponent = exponent
        self._plain = max(_LOWEST, -1000) < exponent < 1000
        if self._plain:
            self._up, self._down = math.ldexp(1.0, -exponent), math.ldexp(1.0, exponent)
        self._multiples = np.empty(size, dtype=np.float64)
        self._whole = np.empty(size, dtype=np.int64)
        self._left_over = np.empty(size, dtype=np.bool_)

    def split(self, values: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.bool_]]:
        """How many, what they make, and where that is not all. To be used before the next block is split."""
        if not self._plain:
            whole, rest = _split(values, self._exponent)
            return whole, values - rest, rest != 0.0
        whole = self._whole[: values.size]
        multiples, left_over = self._multiples[: values.size], self._left_over[: values.size]
        np.multiply(values, self._up, out=multiples)
        np.trunc(multiples, out=multiples)
        np.copyto(whole, multiples, casting="unsafe")
        np.multiply(multiples, self._down, out=multiples)
        np.not_equal(multiples, values, out=left_over)
        return whole, multiples, left_over


def magnitude(values: NDArray[np.floating[Any]]) -> float:
    """The largest magnitude of an array, 0 for an empty one; NaN if there is one in it."""
    if values.size == 0:
        return 0.0
    high, low = float(values.max()), float(values.min())
    return math.nan if math.isnan(high) else max(high, -low, 0.0)


def _carry_of(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """The multiple of 2**46 nearest to each value; what remains lies in [-2**45, 2**45)."""
    return (values + _HALF) >> LIMB_BITS


def _scaled(values: NDArray[np.float64], exponent: int) -> NDArray[np.float64]:
    """``values * 2**exponent``; rounded where the result is subnormal."""
    if -1000 < exponent < 1000:
        return values * math.ldexp(1.0, exponent)  # much faster than ldexp
    scaled: NDArray[np.float64] = np.ldexp(values, exponent)
    return scaled


def _split(values: NDArray[np.float64], exponent: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Split into whole multiples of ``2**exponent`` and the rest, both exact and of the sign of the value."""
    if exponent <= _LOWEST:
        whole, rest = np.ldexp(values, -exponent), np.zeros_like(values)
    else:
        whole = np.trunc(_scaled(values, -exponent))
        rest = values - _scaled(whole, exponent)
    return whole.astype(np.int64), rest
