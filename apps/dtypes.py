"""Which dtypes travel, and under which names.

    |b1 <i4 >i4 <f2 <f8 <c16 ...   NumPy's own names (`dtype.str`) of bool, integers, floats, complex numbers
    <f16:63 <c32:63 ...            long doubles also say how many bits their mantissa has, since the same 16 bytes mean
                                   different numbers on different processors
    <M8[s] <m8[ns] ...             dates and durations
    bfloat16 float8_e4m3fn ...     the types of the package ml_dtypes, where it is installed, little-endian

Everything else is refused: objects would need pickle, and strings and records are no arrays of numbers.
"""

from __future__ import annotations

import re
import sys
from functools import lru_cache
from typing import Any

import numpy as np

from fedq.apps.errors import UnsupportedDtype, WireError
from fedq.apps.typing import Dtype, NDArray

__all__ = ["canonical", "check_dtype", "dtype_from_wire", "dtype_name", "dtype_to_wire", "is_ml"]

_LONG_CHARS = "gG"
_LONG_MANTISSA = int(np.finfo(np.longdouble).nmant)
# An x87 long double has ten bytes of content; the rest of its place in memory is whatever lay there.
_X87 = _LONG_MANTISSA == 63
_X87_CONTENT = 10

_TIME = re.compile(r"[<>][mM]8(\[[0-9]{0,9}[a-zA-Zμ]{1,2}\])?")
_ML_NAME = re.compile(r"(bfloat16|u?int[1248]|b?complex32|float[4-8]_[a-z0-9]{1,24})")


def _name_numpy(dtype: Dtype) -> str:
    return f"{dtype.str}:{_LONG_MANTISSA}" if dtype.char in _LONG_CHARS else dtype.str


def _numpy_dtypes() -> dict[str, Dtype]:
    named: dict[str, Dtype] = {}
    for char in "?bBhHiIlLqQefdFDgG":
        for dtype in (np.dtype(char).newbyteorder("<"), np.dtype(char).newbyteorder(">")):
            named.setdefault(_name_numpy(dtype), dtype)
    return named


_BY_NAME: dict[str, Dtype] = _numpy_dtypes()
_BY_DTYPE: dict[Dtype, str] = {dtype: name for name, dtype in _BY_NAME.items()}


def is_ml(dtype: Dtype) -> bool:
    """Whether the dtype is one of the package ml_dtypes."""
    return dtype.type.__module__.partition(".")[0] == "ml_dtypes"


@lru_cache(maxsize=256)
def dtype_name(dtype: Dtype) -> str:
    """The name that an Array gives: `str(dtype)`, which takes NumPy longer than all else that is done with an array."""
    return str(dtype)


def dtype_to_wire(dtype: Dtype) -> str:
    """The name of a dtype on the wire. Raises UnsupportedDtype for one that does not travel."""
    # A dtype with metadata or of ml_dtypes may equal one of NumPy's, so those are looked at first.
    if not is_ml(dtype):
        name = _BY_DTYPE.get(dtype)
        if name is not None:
            return name
        if dtype.kind in "biufc" and dtype.isbuiltin:
            return _name_numpy(dtype)
        if dtype.kind in "mM":
            return dtype.str
    elif _ML_NAME.fullmatch(dtype.name):
        if dtype.isnative or dtype.itemsize == 1:
            return dtype.name
        raise UnsupportedDtype(f"arrays of {dtype.name} travel in the machine's own byte order: convert it first")
    hint = (
        "convert it to numbers first, or put text and bytes into a ConfigRecord"
        if dtype.kind in "OUST"
        else "use bool, integer, float, complex or time dtypes"
    )
    raise UnsupportedDtype(f"arrays of dtype {dtype} cannot be put into a record: {hint}")


def check_dtype(array: NDArray) -> None:
    """Raise UnsupportedDtype unless arrays of this dtype travel."""
    dtype_to_wire(array.dtype)


def dtype_from_wire(name: str) -> Dtype:
    """The dtype of a name. Raises WireError for names that are unknown, or unknown on this machine."""
    dtype = _BY_NAME.get(name)
    if dtype is not None:
        return dtype
    if _TIME.fullmatch(name):
        try:
            return np.dtype(name)
        except (TypeError, ValueError, OverflowError):
            pass
    elif _ML_NAME.fullmatch(name):
        return _ml_dtype(name)
    elif ":" in name and name.partition(":")[0][1:] in ("f12", "c24", "f16", "c32"):
        raise WireError(
            f"the array holds long doubles of another kind of processor ({name!r}; here it is {_LONG_MANTISSA} bits): "
            "send float64 instead"
        )
    raise WireError(f"unknown dtype {name[:40]!r} in the data")


def _ml_dtype(name: str) -> Dtype:
    try:
        import ml_dtypes
    except ImportError:
        raise WireError(f"an array of dtype {name!r} needs the package ml_dtypes here: pip install ml-dtypes") from None
    scalar: Any = getattr(ml_dtypes, name, None)
    if scalar is None:
        raise WireError(f"the ml_dtypes installed here knows no dtype {name!r}: install a newer one")
    dtype: Dtype = np.dtype(scalar)
    # ml_dtypes computes in the machine's order only, and today's machines are little-endian.
    return dtype if sys.byteorder == "little" else dtype.newbyteorder("<")


def canonical(array: NDArray) -> NDArray:
    """An array of equal values whose bytes depend on the values alone: itself, or a copy without the padding."""
    dtype = array.dtype
    if not (_X87 and dtype.char in _LONG_CHARS and dtype.kind in "fc"):
        return array
    # One long double, or two in a complex number, each of this many bytes.
    size = np.dtype(np.longdouble).itemsize
    clean = array.copy(order="A")
    flat = clean.reshape(-1, order="A").view(np.uint8).reshape(-1, size)
    little = dtype.isnative == (sys.byteorder == "little")
    if little:
        flat[:, _X87_CONTENT:] = 0
    else:
        flat[:, : size - _X87_CONTENT] = 0
    return clean
