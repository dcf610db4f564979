"""Averages have the values and dtypes of plain NumPy arithmetic, and do not depend on the order of arrival."""

from __future__ import annotations

import itertools
import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from fedq.apps import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from fedq.apps.errors import InconsistentReply
from fedq.apps.strategy import CheckpointError
from fedq.apps.strategy.averaging import ArrayAverage, MetricAverage
from fedq.apps.wire import decode, encode


def record(*arrays: NDArray[Any]) -> ArrayRecord:
    return ArrayRecord(list(arrays))


def averaged(terms: list[tuple[NDArray[Any], float]], sent: NDArray[Any] | None = None) -> NDArray[Any]:
    average = ArrayAverage(None if sent is None else record(sent))
    for array, weight in terms:
        average.add(record(array), weight)
    result = average.result()
    assert result is not None
    return result.to_numpy_ndarrays()[0]


def plain(terms: list[tuple[NDArray[Any], float]]) -> NDArray[Any]:
    """What weighting one array after the other in NumPy gives."""
    total = sum(weight for _, weight in terms)
    result: NDArray[Any] = sum(array * (weight / total) for array, weight in terms)  # type: ignore[assignment]
    return result


@given(
    hnp.arrays(np.float32, (4, 3), elements=st.floats(width=32, min_value=-(2.0**100), max_value=2.0**100)),
    st.permutations(range(5)),
)
def test_the_order_of_arrival_changes_no_bit(base: NDArray[np.float32], order: list[int]) -> None:
    terms = [((base * np.float32(0.3 * k + 1)).astype(np.float32), 17.0 * k + 1.5) for k in range(5)]
    assert averaged([terms[k] for k in order], base).tobytes() == averaged(terms, base).tobytes()


def test_every_permutation_gives_the_same_bits_where_float_addition_does_not() -> None:
    rng = np.random.default_rng(1)
    terms = [(rng.standard_normal(50).astype(np.float32) * 10.0 ** rng.integers(-6, 7), 1.0 + k / 3) for k in range(5)]
    orders = list(itertools.permutations(terms))
    assert len({plain(list(order)).tobytes() for order in orders}) > 1, "the test would show nothing"
    assert len({averaged(list(order), terms[0][0]).tobytes() for order in orders}) == 1


def kept(records: RecordDict) -> RecordDict:
    """As it comes out of a checkpoint."""
    return decode(encode(records).data)


@given(
    hnp.arrays(np.float32, 40, elements=st.floats(-1e6, 1e6, width=32)),
    st.lists(st.booleans(), min_size=5, max_size=5),
    st.booleans(),
)
def test_a_sum_that_was_kept_in_a_checkpoint_goes_on_with_the_same_bits(
    base: NDArray[np.float32], saved: list[bool], anchored: bool
) -> None:
    terms = [(base * np.float32(10.0 ** (4 * k - 8)), 1.0 + k / 3) for k in range(5)]
    sent = base if anchored else None
    average = ArrayAverage(None if sent is None else record(sent))
    for (array, weight), save in zip(terms, saved, strict=True):
        if save:
            before = average
            average = ArrayAverage()
            average.load(kept(before.save()))
            before.add(record(np.ones_like(array)), 3.0)  # what it gave was its own memory
        average.add(record(array), weight)
    result = average.result()
    assert result is not None
    assert result.to_numpy_ndarrays()[0].tobytes() == averaged(terms, sent).tobytes()
    assert average.count == 5


@pytest.mark.parametrize("dtype", ["float16", "complex128", "int64", ">f8", "bfloat16"])
def test_a_sum_that_was_kept_has_the_dtype_of_its_terms(dtype: str) -> None:
    values = np.arange(6).reshape(2, 3).astype(dtype if dtype != "bfloat16" else ml_dtypes.bfloat16)
    average, again = ArrayAverage(record(values)), ArrayAverage()
    average.add(record(values), 2.0)
    again.load(kept(average.save()))
    for each in (average, again):
        each.add(record(values), 1.0)
    one, other = average.result(), again.result()
    assert one is not None
    assert one == other


def test_a_sum_does_not_take_up_what_is_none() -> None:
    average = ArrayAverage()
    average.add(record(np.arange(5.0)), 1.0)
    for damage in ("sizes", "json", "limbs"):
        records = kept(average.save())
        if damage == "limbs":
            del records["limbs"]
        elif damage == "json":
            records["state"] = ConfigRecord({"json": "{"})
        else:
            limbs = records.array_records["limbs"]
            name = next(name for name in limbs if name.endswith("value"))
            limbs[name] = Array(np.zeros(99, dtype=np.int64))
        with pytest.raises(CheckpointError, match="start the run anew"):
            ArrayAverage().load(records)


DTYPES = [
    *("float16", "float32", "float64", "longdouble", "complex64", "complex128"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool", ">f4", ">f8", ">i4", ">c16"),
]


@pytest.mark.parametrize("dtype", [np.dtype(name) for name in DTYPES], ids=DTYPES)
def test_values_and_dtype_are_those_of_numpy(dtype: np.dtype[Any]) -> None:
    rng = np.random.default_rng(0)
    terms: list[tuple[NDArray[Any], float]] = []
    for weight in (3, 1, 8):
        values = rng.uniform(0, 100, (3, 4))
        terms.append(((values + 1j * values.T.reshape(3, 4) if dtype.kind == "c" else values).astype(dtype), weight))
    got, expected = averaged(terms), plain(terms)
    assert got.dtype == expected.dtype
    np.testing.assert_allclose(got, expected, rtol=2e-3 if dtype == np.float16 else 1e-6)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2])
def test_small_floats_of_ml_dtypes_keep_their_dtype(dtype: Any) -> None:
    terms = [(np.array([1, 2, -3, 0.5]).astype(dtype), 1.0), (np.array([3, 2, 1, 0.5]).astype(dtype), 1.0)]
    got = averaged(terms)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got.astype(np.float64), [2, 2, -1, 0.5])


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (2, 3, 4)])
def test_any_shape_comes_back(shape: tuple[int, ...]) -> None:
    got = averaged([(np.full(shape, 2.0), 1.0), (np.full(shape, 4.0), 3.0)], np.zeros(shape))
    assert got.shape == shape
    np.testing.assert_array_equal(got, np.full(shape, 3.5))


def test_fortran_order_and_c_order_average_element_by_element() -> None:
    values = np.arange(12.0).reshape(3, 4)
    np.testing.assert_array_equal(averaged([(np.asfortranarray(values), 1.0), (values, 1.0)]), values)


def test_integers_beyond_float64_are_summed_exactly() -> None:
    big = np.array([2**62 + 1, -(2**62) - 1, 2**60 + 1])
    small = np.array([-(2**62), 2**62, -(2**60)])
    np.testing.assert_array_equal(averaged([(big, 1.0), (small, 1.0)]), [0.5, -0.5, 0.5])
    unsigned = np.array([2**64 - 1], dtype=np.uint64)
    np.testing.assert_array_equal(averaged([(unsigned, 3.0), (unsigned, 1.0)]), [2.0**64])


def test_tiny_elements_beside_huge_ones_keep_their_precision() -> None:
    terms = [(np.array([1e8, 1e-3 * k, 1e-30 * k], dtype=np.float32), float(k)) for k in (1, 2, 3)]
    np.testing.assert_allclose(averaged(terms, np.array([1e8, 0, 0], dtype=np.float32)), plain(terms), rtol=1e-6)


def test_fractional_weights_work_like_whole_ones() -> None:
    arrays = [np.array([1.0, 5.0]), np.array([2.0, -1.0])]
    small = averaged(list(zip(arrays, (1e-12, 3e-12), strict=True)))
    np.testing.assert_allclose(small, [1.75, 0.5], rtol=1e-12)


SENT = {"w": Array(np.zeros((2, 2), np.float32)), "b": Array(np.zeros(2, np.float32))}
GOOD = {"w": Array(np.ones((2, 2), np.float32)), "b": Array(np.ones(2, np.float32))}


@pytest.mark.parametrize(
    ("change", "weight", "complaint"),
    [
        ({"w": None}, 1.0, "lacks 'w'"),
        ({"extra": Array(np.ones(2))}, 1.0, "has 'extra', which the model does not have"),
        ({"w": Array(np.ones((2, 3)))}, 1.0, r"shape \(2, 3\) instead of \(2, 2\)"),
        ({"w": Array(np.ones((2, 2), np.complex64))}, 1.0, "complex64, where real numbers were sent"),
        ({"b": Array(np.array([1.0, np.nan]))}, 1.0, "'b' holds values that are not finite"),
        ({"b": Array(np.array([1.0, -np.inf]))}, 1.0, "'b' holds values that are not finite"),
        ({"b": Array(np.array([1.0, 1e300]))}, 1e10, "beyond the range"),
        ({"b": Array("float32", (2,), "other", b"12345678")}, 1.0, "not one that NumPy can read"),
        ({"b": Array("float32", (2,), "numpy.ndarray", b"12345678")}, 1.0, "not one that NumPy can read"),
    ],
)
def test_a_record_that_does_not_fit_is_refused_and_leaves_no_trace(
    change: dict[str, Array | None], weight: float, complaint: str
) -> None:
    average = ArrayAverage(SENT)
    average.add(GOOD, 2.0)
    bad = {name: array for name, array in {**GOOD, **change}.items() if array is not None}

    with pytest.raises(InconsistentReply, match=complaint):
        average.add(bad, weight)

    result = average.result()
    assert average.count == 1
    assert result is not None
    assert dict(result) == GOOD


def test_the_names_come_in_the_order_in_which_they_were_sent() -> None:
    average = ArrayAverage(SENT)
    average.add(dict(reversed(GOOD.items())), 1.0)
    result = average.result()
    assert result is not None
    assert list(result) == ["w", "b"]


def test_nothing_added_gives_no_average() -> None:
    assert ArrayAverage(SENT).result() is None
    assert MetricAverage("num-examples").result() is None


def test_memory_does_not_grow_with_the_number_of_records() -> None:
    sent = record(np.ones(50_000, np.float32))
    average = ArrayAverage(sent)
    average.add(sent, 3.0)
    one = average.nbytes
    for weight in range(1, 20):
        average.add(sent, float(weight))
    assert average.nbytes == one


@given(st.permutations([(0.1, 3.0), (1e16, 1.0), (-1e16, 1.0), (0.7, 11.0)]))
def test_metrics_do_not_depend_on_the_order_either(replies: list[tuple[float, float]]) -> None:
    average = MetricAverage("num-examples")
    for value, weight in replies:
        average.add(MetricRecord({"loss": value, "num-examples": weight}), weight)
    assert average.result() == MetricRecord({"loss": math.fsum([0.1 * 3, 0.7 * 11]) / 16.0})


def test_lists_are_averaged_element_by_element() -> None:
    average = MetricAverage("n")
    average.add(MetricRecord({"curve": [1.0, 2.0], "n": 1}), 1.0)
    average.add(MetricRecord({"curve": [3, 6], "n": 3}), 3.0)
    assert average.result() == MetricRecord({"curve": [2.5, 5.0]})


def test_a_metric_is_averaged_over_those_that_report_it() -> None:
    average = MetricAverage("n")
    average.add(MetricRecord({"loss": 1.0, "seconds": 4.0, "n": 1}), 1.0)
    average.add(MetricRecord({"loss": 2.0, "n": 1}), 1.0)
    assert average.result() == MetricRecord({"loss": 1.5, "seconds": 4.0})
    assert average.partly_reported == ["seconds"]


def test_the_form_that_most_replies_use_decides() -> None:
    average = MetricAverage("n")
    for value in ([1.0, 2.0], [1.0], [3.0]):
        average.add(MetricRecord({"curve": value, "n": 1}), 1.0)
    assert average.result() == MetricRecord({"curve": [2.0]})
    assert average.partly_reported == ["curve"]


def test_empty_lists_stay_empty() -> None:
    average = MetricAverage("n")
    average.add(MetricRecord({"curve": [], "n": 1}), 1.0)
    assert average.result() == MetricRecord({"curve": []})
