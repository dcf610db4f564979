"""A strategy that needs all replies at once holds no more of them in memory than it is allowed."""

from __future__ import annotations

import os
import tracemalloc
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from fedq.apps.errors import InconsistentReply
from fedq.apps.strategy import FedMedian
from fedq.apps.strategy.reply_store import ReplyStore
from tests.apps.strategies.scripted import record

KEY = ("node", "message")


def median(values: Any) -> Any:
    return np.median(values, axis=0)


@pytest.mark.parametrize("limit", [0, 1 << 20])
@pytest.mark.parametrize(
    "dtype", ["float16", ">f4", "float64", "complex64", "int8", "bool", ml_dtypes.bfloat16], ids=str
)
def test_rows_come_back_as_they_went_in(limit: int, dtype: Any) -> None:
    arrays = {
        "matrix": np.asfortranarray(np.arange(6).reshape(2, 3).astype(dtype)),
        "number": np.array(1).astype(dtype),
        "empty": np.empty((0, 2), dtype),
    }
    with ReplyStore(record(arrays), limit) as store:
        store.add(KEY, record(arrays), 2.5)
        back = store.record(0)
        combined = store.combined(median)
    for name, array in arrays.items():
        assert back[name].numpy().dtype == array.dtype
        np.testing.assert_array_equal(back[name].numpy(), array)
        assert combined[name].shape == array.shape
        np.testing.assert_array_equal(combined[name].numpy().astype(complex), array.astype(complex))
    assert combined["matrix"].numpy().dtype == (
        float if np.dtype(dtype).kind in "ib" else np.dtype(dtype).newbyteorder("=")
    )


def test_rows_are_read_in_the_order_of_their_keys() -> None:
    with ReplyStore(None) as store:
        for node in ("c", "a", "b"):
            store.add((node, ""), record({"x": np.array([float(ord(node))])}), 1.0)
        assert store.order == [1, 2, 0]
        seen: list[Any] = []
        store.combined(lambda values: seen.append(values[:, 0].tolist()) or values[0])  # type: ignore[func-returns-value]
        assert seen == [[97.0, 98.0, 99.0]]
        np.testing.assert_array_equal(store.squared_distances(), [[0, 1, 4], [1, 0, 1], [4, 1, 0]])


def test_rows_of_several_dtypes_give_the_widest() -> None:
    with ReplyStore(None) as store:
        for dtype in ("float32", "float16", "int32"):
            store.add(KEY, record({"x": np.array([1, 2]).astype(dtype)}), 1.0)
        assert store.combined(median)["x"].dtype == "float64"


def test_distances_of_complex_rows_are_those_of_the_plane() -> None:
    with ReplyStore(None) as store:
        for value in (0j, 3 + 4j):
            store.add(KEY, record({"x": np.array([value])}), 1.0)
        assert store.squared_distances()[0, 1] == 25.0


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({}, "lacks 'x'"),
        ({"x": np.zeros(2), "y": np.zeros(1)}, "has 'y'"),
        ({"x": np.zeros((2, 1))}, "shape"),
        ({"x": np.zeros(2, complex)}, "where real numbers were sent"),
        ({"x": np.array([1.0, np.nan])}, "not finite"),
        ({"x": np.array([1.0, -np.inf])}, "not finite"),
    ],
)
def test_a_row_that_does_not_fit_is_refused_and_leaves_no_trace(wrong: Any, reason: str) -> None:
    with ReplyStore(record({"x": np.zeros(2)})) as store:
        with pytest.raises(InconsistentReply, match=reason):
            store.add(KEY, record(wrong), 1.0)
        assert len(store) == 0
        store.add(KEY, record({"x": np.array([1.0, 2.0])}), 1.0)
        np.testing.assert_array_equal(store.combined(median)["x"].numpy(), [1.0, 2.0])


def test_memory_does_not_grow_with_the_number_of_replies() -> None:
    size, limit = 200_000, 1 << 20

    def peak(rows: int) -> int:
        sent = record({"x": np.zeros(size, np.float32)})
        tracemalloc.start()
        try:
            with ReplyStore(sent, limit) as store:
                for row in range(rows):
                    store.add((f"{row:03d}", ""), record({"x": np.full(size, row, np.float32)}), 1.0)
                store.combined(median)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    # 48 replies are 38 MB. Blocks, and what the median takes of them, are a matter of a few times 16 MiB at most.
    few, many = peak(12), peak(48)
    assert many < 1.5 * few + 8 * 2**20


def test_the_file_has_no_name_and_is_gone_afterwards() -> None:
    def open_files() -> list[str]:
        return [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _exists(fd)]

    before = len([name for name in open_files() if "deleted" in name])
    with ReplyStore(None, 0) as store:
        store.add(KEY, record({"x": np.zeros(10)}), 1.0)
        assert len([name for name in open_files() if "deleted" in name]) == before + 1
    assert len([name for name in open_files() if "deleted" in name]) == before


def _exists(fd: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")


def test_a_limit_below_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="memory_limit is a number of bytes, not -1"):
        FedMedian(memory_limit=-1)
