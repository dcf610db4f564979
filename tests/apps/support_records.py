"""Hypothesis strategies for arrays, records and messages."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fedq.apps import ArrayRecord, ConfigRecord, Context, Error, Message, Metadata, MetricRecord, RecordDict
from fedq.apps.array import is_fortran
from fedq.apps.dtypes import canonical
from fedq.apps.message import make_message

# Machines under load are slow; that is no failure.
settings.register_profile("fedq", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fedq")

NUMPY_DTYPES = [
    np.dtype(char).newbyteorder(order)
    for char in "?bBhHiIlLqQefdgFDG"
    for order in ("<", ">")  # type: ignore[call-overload]
] + [np.dtype(name) for name in ("<M8[s]", ">M8[ns]", "<m8[D]", ">m8[25us]")]
ML_DTYPES = [np.dtype(getattr(ml_dtypes, name)) for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2", "int4")]

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
integers = st.integers(-(2**63), 2**64 - 1)
floats = st.floats(allow_nan=False)


@st.composite
def ndarrays(draw: st.DrawFn) -> Any:
    """Arrays of every dtype that travels; 0-d, empty, in C and Fortran order, strided, with any bits in them."""
    dtype = draw(st.sampled_from(NUMPY_DTYPES + ML_DTYPES))
    shape = draw(npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    size = int(np.prod(shape)) * dtype.itemsize
    if dtype.char in "?gG" or dtype.kind == "V":
        # Not every bit pattern is a value of these.
        small = draw(npst.arrays(np.int8, shape, elements=st.integers(0, 1 if dtype.char == "?" else 7)))
        array = small.astype(dtype)
    else:
        raw = draw(st.binary(min_size=size, max_size=size))
        array = np.frombuffer(bytearray(raw), dtype).reshape(shape) if size else np.empty(shape, dtype)
    layout = draw(st.sampled_from(["C", "F", "strided", "reversed"]))
    if layout == "F":
        return np.asfortranarray(array) if array.ndim else array
    if layout == "strided" and array.ndim:
        return np.repeat(array, 2, axis=-1)[..., ::2]
    if layout == "reversed" and array.ndim:
        return array[::-1]
    return array


def same_bits(one: Any, other: Any) -> bool:
    """Whether two arrays agree in dtype, shape and all bits that count, and in order if the second is contiguous."""
    contiguous = other.flags.c_contiguous or other.flags.f_contiguous
    return bool(
        one.dtype == other.dtype
        and str(one.dtype) == str(other.dtype)
        and one.shape == other.shape
        and one.tobytes() == canonical(other).tobytes()
        and (not contiguous or is_fortran(one) == is_fortran(other))
    )


array_records = st.lists(ndarrays(), max_size=3).map(ArrayRecord)
metric_values = st.one_of(integers, floats, st.lists(integers, max_size=4), st.lists(floats, max_size=4))
metric_records = st.dictionaries(names, metric_values, max_size=4).map(MetricRecord)
scalars = (st.booleans(), integers, floats, texts, st.binary(max_size=20))
config_values = st.one_of(*scalars, *(st.lists(scalar, max_size=4) for scalar in scalars))
config_records = st.dictionaries(names, config_values, max_size=4).map(ConfigRecord)
record_dicts = st.dictionaries(names, st.one_of(array_records, metric_records, config_records), max_size=4).map(
    RecordDict
)

user_configs = st.dictionaries(names, st.one_of(st.booleans(), integers, floats, texts), max_size=5)
errors = st.builds(Error, st.integers(0, 2000), st.none() | texts, st.none() | texts)
times = st.floats(0, 1e10)
metadatas = st.builds(
    Metadata,
    st.integers(0, 2**40),
    texts,
    texts,
    texts,
    texts,
    texts,
    times,
    times,
    st.sampled_from(["train", "evaluate", "query", "train.warmup", "query.a_1"]),
)
messages: st.SearchStrategy[Message] = st.one_of(
    st.builds(lambda meta, content: make_message(meta, content), metadatas, record_dicts),
    st.builds(lambda meta, error: make_message(meta, None, error), metadatas, errors),
)
contexts = st.builds(Context, st.integers(0, 2**40), texts, user_configs, record_dicts, user_configs)
