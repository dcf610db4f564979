"""Arrays: snapshots, independent copies, every dtype, shape and order."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given

from fedq.apps import Array, ArrayRecord, UnsupportedDtype
from tests.apps.support_records import ndarrays, same_bits


@given(ndarrays())
def test_an_array_gives_back_what_it_was_made_of(ndarray: Any) -> None:
    array = Array(ndarray)
    assert same_bits(array.numpy(), ndarray)
    assert array.dtype == str(ndarray.dtype)
    assert array.shape == ndarray.shape
    assert array.nbytes == ndarray.nbytes


@given(ndarrays())
def test_its_data_are_an_npy_file_that_makes_an_equal_array(ndarray: Any) -> None:
    array = Array(ndarray)
    again = Array(array.dtype, array.shape, array.stype, array.data)
    assert again == array
    assert same_bits(again.numpy(), ndarray)


@given(ndarrays())
def test_arrays_survive_pickle_and_copy(ndarray: Any) -> None:
    array = Array(ndarray)
    for other in (pickle.loads(pickle.dumps(array)), copy.copy(array), copy.deepcopy(array)):
        assert other == array


def test_an_array_is_a_snapshot() -> None:
    source = np.ones(3)
    array = Array(source)
    record = ArrayRecord([source])
    source[:] = 2
    assert array.numpy().tolist() == record["0"].numpy().tolist() == [1, 1, 1]


def test_what_numpy_gives_is_writable_and_independent() -> None:
    array = Array(np.ones(3))
    out = array.numpy()
    out += 1
    assert array.numpy().tolist() == [1, 1, 1]
    (out,) = ArrayRecord({"a": array}).to_numpy_ndarrays()
    out += 1
    assert array.numpy().tolist() == [1, 1, 1]


def test_a_view_copies_nothing_and_cannot_be_written() -> None:
    array = Array(np.ones(3))
    view = array.numpy(copy=False)
    assert np.shares_memory(view, array.numpy(copy=False))
    (same,) = ArrayRecord({"a": array}).to_numpy_ndarrays(copy=False)
    assert np.shares_memory(view, same)
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 2
    with pytest.raises(ValueError, match="WRITEABLE"):
        view.flags.writeable = True


def test_an_array_made_without_copying_shares_the_memory_and_closes_it() -> None:
    source = np.ones(3)
    array = Array.from_numpy_ndarray(source, copy=False)
    assert np.shares_memory(array.numpy(copy=False), source)
    assert not source.flags.writeable


def test_memory_that_nobody_can_change_is_not_copied() -> None:
    frozen = np.frombuffer(bytes(64))
    assert np.shares_memory(Array(frozen).numpy(copy=False), frozen)
    # Read-only for whoever holds it, but not for whoever owns it.
    owner = np.ones(4)
    lent = owner.view()
    lent.flags.writeable = False
    assert not np.shares_memory(Array(lent).numpy(copy=False), owner)
    assert not np.shares_memory(Array(np.frombuffer(bytearray(64))).numpy(copy=False), owner)


def test_an_array_cannot_be_changed() -> None:
    array: Any = Array(np.ones(3))
    for name in ("dtype", "shape", "stype", "data"):
        with pytest.raises(AttributeError):
            setattr(array, name, None)
    with pytest.raises(TypeError):
        hash(array)


def test_arrays_are_equal_if_every_bit_is() -> None:
    ones = np.ones((2, 3), np.float32)
    assert Array(ones) == Array(ones.copy())
    for other in (ones * 2, ones.astype(np.float64), ones.reshape(3, 2), np.asfortranarray(ones), ones.astype(">f4")):
        assert Array(ones) != Array(other)
    assert Array(np.array([np.nan])) == Array(np.array([np.nan]))
    assert Array(np.array([0.0])) != Array(np.array([-0.0]))
    assert Array(ones) != 1


def test_the_padding_of_a_long_double_is_no_part_of_its_value() -> None:
    size = np.dtype(np.longdouble).itemsize
    for kind in (np.longdouble, np.clongdouble):
        one = np.ones(2, kind)
        dirty = one.copy()
        raw = dirty.view(np.uint8).reshape(-1, size)
        if np.finfo(np.longdouble).nmant == 63:
            raw[:, 10:] = 0xAB
        assert Array(dirty) == Array(one)
        assert Array(dirty.astype(dirty.dtype.newbyteorder(">"))) == Array(one.astype(one.dtype.newbyteorder(">")))


def test_a_strided_array_becomes_contiguous_and_keeps_its_values() -> None:
    strided = np.arange(24.0).reshape(4, 6)[::2, ::-3]
    array = Array(strided)
    assert array.numpy(copy=False).flags.c_contiguous
    assert np.array_equal(array.numpy(), strided)


def test_subclasses_of_ndarray_become_plain() -> None:
    masked = np.ma.array([1, 2], mask=[False, True])
    assert type(Array(masked).numpy()) is np.ndarray
    assert Array(masked).numpy().tolist() == [1, 2]


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3b11fnuz", "int4", "uint4"])
def test_the_dtypes_of_ml_dtypes_are_kept(name: str) -> None:
    ndarray = np.array([[0, 1, 2], [3, 1, 0]]).astype(getattr(ml_dtypes, name))
    array = Array(ndarray)
    assert array.dtype == name
    assert array.numpy().dtype == ndarray.dtype
    again = Array(array.dtype, array.shape, array.stype, array.data)
    assert again == array
    assert again.numpy().dtype == ndarray.dtype


def test_swapped_dtypes_of_ml_dtypes_are_refused() -> None:
    swapped = np.zeros(2, np.dtype(ml_dtypes.bfloat16).newbyteorder(">"))
    with pytest.raises(UnsupportedDtype, match="byte order"):
        Array(swapped)


def test_without_pytorch_its_methods_say_what_is_missing() -> None:
    code = """
import sys
sys.modules["torch"] = None
from fedq.apps import Array, ArrayRecord, UnsupportedDtype
import numpy as np
for call in (
    lambda: ArrayRecord([np.ones(2)]).to_torch_state_dict(),
    lambda: ArrayRecord.from_torch_state_dict({}),
    lambda: Array.from_torch_tensor(None),
):
    try:
        call()
    except RuntimeError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.count("PyTorch is required") == 3
