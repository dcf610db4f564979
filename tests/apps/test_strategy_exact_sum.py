"""Sums are exact and the same, bit for bit, in whatever order their terms come."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedq.apps.strategy.exact_sum import BLOCK, ExactSum

Floats = NDArray[np.float64]
finite = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e300, max_value=1e300)
anchors = st.integers(min_value=-200, max_value=200)


def summed(terms: list[Floats], anchor: int, divisor: float = 1.0) -> Floats:
    total = ExactSum(terms[0].size, anchor)
    for term in terms:
        total.add(term)
    return total.divided_by(divisor)


@given(st.lists(st.tuples(finite, finite, finite), min_size=1, max_size=12), anchors, st.randoms(use_true_random=False))
def test_any_order_gives_the_same_bits(rows: list[tuple[float, ...]], anchor: int, random: Any) -> None:
    terms = [np.array(row) for row in rows]
    expected = summed(terms, anchor, 7.0)
    random.shuffle(terms)
    assert summed(terms, anchor, 7.0).tobytes() == expected.tobytes()


@given(st.lists(finite, min_size=1, max_size=12), anchors)
def test_the_sum_is_that_of_exact_arithmetic(values: list[float], anchor: int) -> None:
    exact = sum(map(Fraction, values))
    (got,) = summed([np.array([value]) for value in values], anchor)
    assert math.isclose(got, float(exact), rel_tol=4e-16, abs_tol=5e-324)


def test_what_cancels_leaves_exactly_the_rest() -> None:
    terms = [np.array([value]) for value in (1e300, 1.0, -1e300, 2.0**-1074, 1e16)]
    assert summed(terms, -40)[0] == 1e16 + 1.0
    assert summed([np.array([1e16]), np.array([1.0]), np.array([-1e16])], -40)[0] == 1.0


@pytest.mark.parametrize("anchor", [-1100, -40, 0, 900])
def test_the_smallest_and_the_largest_numbers_are_kept(anchor: int) -> None:
    values = np.array([5e-324, -5e-324, 1.7e308, -1.7e308, 0.0, 2.2250738585072014e-308])
    np.testing.assert_array_equal(summed([values], anchor), values)


def test_many_terms_carry_into_the_next_limb_without_loss() -> None:
    values = np.array([2.0**20, -(2.0**20), 1.1, -1e-9])
    total = ExactSum(4, -40)
    for _ in range(2500):
        total.add(values)
    np.testing.assert_array_equal(total.divided_by(2500.0), values)


def test_the_average_of_numbers_whose_sum_overflows_is_finite() -> None:
    terms = [np.array([1.6e308])] * 10
    assert summed(terms, -40, 10.0)[0] == 1.6e308


def test_blocks_do_not_show() -> None:
    rng = np.random.default_rng(0)
    terms = [rng.standard_normal(BLOCK * 2 + 17) * 10.0 ** rng.integers(-9, 3) for _ in range(5)]
    whole = summed(terms, -40, 5.0)
    parts = [summed([term[at : at + 9999] for term in terms], -40, 5.0) for at in range(0, terms[0].size, 9999)]
    np.testing.assert_array_equal(whole, np.concatenate(parts))


@given(
    st.lists(st.integers(-(2**50), 2**50), min_size=1, max_size=20),
    st.floats(0.1, 1e6),
    anchors,
)
def test_a_second_limb_that_holds_nothing_does_not_change_a_bit(values: list[int], divisor: float, anchor: int) -> None:
    def sum_of(bound: int, value: NDArray[np.int64]) -> ExactSum:
        total = ExactSum(value.size, anchor)
        total.add_limb(0, bound, None, value)
        return total

    dense = np.array(values * 500, dtype=np.int64)
    dense[: BLOCK + 1] >>= 8  # one block of digits, and perhaps one that is none
    alone, accompanied = sum_of(1 << 51, dense), sum_of(1 << 51, dense)
    accompanied.add_limb(3, 0, None, np.zeros_like(dense))

    quotients = alone.divided_by(divisor)
    assert quotients.tobytes() == accompanied.divided_by(divisor).tobytes()
    exact = [float(Fraction(int(value)) * Fraction(2) ** anchor) / divisor for value in dense]
    np.testing.assert_allclose(quotients, exact, rtol=1e-15)


def test_a_float32_model_with_integer_weights_takes_about_one_int64_per_element() -> None:
    rng = np.random.default_rng(0)
    total = ExactSum(200_000, -38)
    for weight in (120, 480, 33):
        total.add(rng.standard_normal(200_000).astype(np.float32).astype(np.float64) * weight)
    assert total.nbytes < 1.1 * 8 * 200_000


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_and_changes_nothing(bad: float) -> None:
    total = ExactSum(2, -40)
    total.add(np.array([1.0, 2.0]))
    with pytest.raises(ValueError, match="finite"):
        total.add(np.array([1.0, bad]))
    with pytest.raises(ValueError, match="shape"):
        total.add(np.array([1.0]))
    np.testing.assert_array_equal(total.divided_by(1.0), [1.0, 2.0])


def test_an_empty_sum_is_zero_and_an_empty_array_is_fine() -> None:
    np.testing.assert_array_equal(ExactSum(3, -40).divided_by(2.0), np.zeros(3))
    assert summed([np.zeros(0)], -40).size == 0
