"""Arrays that travel smaller than they are.

A compressed array is an `Array` whose `dtype` and `shape` are those of the original and whose `stype` says how its data
is to be read. `Array.numpy` reads the dense form by itself, so that strategies, mods and apps see no difference. The
sparse form is what changed against a model that the reader has too; who sent that model puts it back (`restored`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from fedq.apps.array import COMPRESSED, NUMPY, Array
from fedq.apps.dtypes import dtype_from_wire, dtype_to_wire
from fedq.apps.errors import WireError
from fedq.apps.extras import require
from fedq.apps.message import Message, make_message
from fedq.apps.recorddict import RecordDict

SPARSE = "fedq.sparse"
"""The `stype` of an update of few elements."""

LARGEST_RATIO = 1000
"""No array becomes more than so many times as large as its data: a few bytes cannot ask a reader for all its memory."""

Precision: TypeAlias = Literal["float16", "bfloat16"]
"""What floating values are rounded to on their way."""

_SMALL = 1 << 16


class _Dense(msgspec.Struct, array_like=True, frozen=True):
    dtype: str  # of the values as they travel
    original: str
    zstd: bool
    content: bytes


class _Sparse(msgspec.Struct, array_like=True, frozen=True):
    base: bytes  # digest of the array that was sent
    original: str
    dtype: str
    zstd: bool
    count: int
    content: bytes  # indices as uint32 or uint64, each less the one before it, then the values


def check_compression(precision: object, zstd_level: int | None) -> None:
    """Whether these are a `Precision` or None, and a level of Zstandard or None.

    Raises:
        ValueError: they are not.
    """
    if precision not in (None, "float16", "bfloat16"):
        raise ValueError(f"precision must be 'float16', 'bfloat16' or None, not {precision!r}")
    if zstd_level is not None and not 1 <= zstd_level <= 22:
        raise ValueError(f"zstd_level must lie between 1 and 22, not {zstd_level}")


def compressed(array: Array, *, precision: Precision | None = None, zstd_level: int | None = None) -> Array:
    """The dense form of an array, or the array itself where that is no smaller.

    Args:
        array: a NumPy array of any dtype that travels.
        precision: floating values become these; None: they stay. So do those of an array that has a value beyond their
            range, and integers.
        zstd_level: 1 to 22; None: the bytes are not compressed.

    Raises:
        MissingExtra: ml_dtypes or zstandard is missing: ``pip install 'fedq[compression]'``.
    """
    if array.stype != NUMPY:
        return array
    values = array.numpy(copy=False)
    narrow = rounded(values, precision)
    content, zstd = _packed(narrow, zstd_level, values.nbytes)
    dense = _Dense(dtype_to_wire(narrow.dtype), dtype_to_wire(values.dtype), zstd, content)
    data = msgspec.msgpack.encode(dense)
    if len(data) >= values.nbytes:
        return array
    return Array(array.dtype, array.shape, COMPRESSED, data)


def decompressed(array: Array) -> NDArray[Any]:
    """The array in its original dtype. Raises ValueError if its data is damaged."""
    dense = _read(array.data, _Dense)
    try:
        dtype, original = dtype_from_wire(dense.dtype), dtype_from_wire(dense.original)
    except WireError as exc:
        raise ValueError(f"the data of a compressed array is damaged: {exc}") from exc
    size = math.prod(array.shape)
    _bounded(size * max(dtype.itemsize, original.itemsize), len(dense.content))
    values = np.frombuffer(_unpacked(dense.content, dense.zstd, size * dtype.itemsize), dtype=dtype)
    return values.astype(original).reshape(array.shape)


def sparse(
    base: Array, update: NDArray[Any], index: NDArray[np.int64], *, precision: Precision | None, zstd_level: int | None
) -> tuple[Array, NDArray[Any]]:
    """The sparse form of ``base + update`` with the elements at these ascending flat places only, in `base`'s dtype.

    Returns it, and the values of those elements as its reader gets them, in the dtype of `update`.
    """
    model = base.numpy(copy=False)
    values = rounded(update.reshape(-1)[index].astype(model.dtype), precision)
    steps = np.diff(index, prepend=0).astype("<u4" if update.size < 1 << 32 else "<u8")
    content, zstd = _packed(steps, zstd_level, 0, values.tobytes())
    made = _Sparse(
        _digest(base), dtype_to_wire(model.dtype), dtype_to_wire(values.dtype), zstd, int(index.size), content
    )
    return Array(base.dtype, base.shape, SPARSE, msgspec.msgpack.encode(made)), values.astype(update.dtype)


def densified(base: Array, array: Array) -> Array:
    """The array that a sparse one means, where `base` is what its author was sent.

    Raises:
        ValueError: it was made against another array, or is damaged.
    """
    made = _read(array.data, _Sparse)
    model = base.numpy(copy=False)
    if made.base != _digest(base) or array.shape != model.shape:
        raise ValueError("a sparse array was made against another model than the one that was sent")
    try:
        dtype = dtype_from_wire(made.dtype)
    except WireError as exc:
        raise ValueError(f"the data of a sparse array is damaged: {exc}") from exc
    wide = np.dtype("<u4" if model.size < 1 << 32 else "<u8")
    if not 0 <= made.count <= model.size:
        raise ValueError("a sparse array has more elements than the model")
    content = _unpacked(made.content, made.zstd, made.count * (wide.itemsize + dtype.itemsize))
    steps = np.frombuffer(content, dtype=wide, count=made.count)
    index = np.cumsum(steps.astype(np.uint64))
    if made.count and (int(index.max()) >= model.size or (steps[1:] == 0).any() or int(steps.max()) >= model.size):
        raise ValueError("a sparse array names an element twice, or one that the model does not have")
    values = np.frombuffer(content, dtype=dtype, offset=made.count * wide.itemsize)
    dense = model.astype(np.float64, order="C").reshape(-1)
    dense[index] += values.astype(np.float64)
    return Array.from_numpy_ndarray(np.asarray(dense.reshape(model.shape)).astype(model.dtype), copy=False)


def restored(reply: Message, sent: RecordDict) -> Message:
    """A reply in which sparse arrays are whole again, where `sent` is the content of the message it answers.

    One that does not fit stays as it is: who reads it finds out, and counts the reply as failed.
    """
    if reply.has_error() or not any(
        array.stype == SPARSE for record in reply.content.array_records.values() for array in record.values()
    ):
        return reply
    bases = {name: array for record in sent.array_records.values() for name, array in record.items()}
    content = RecordDict(dict(reply.content.items()))
    for key, record in reply.content.array_records.items():
        content[key] = type(record)({name: _whole(array, bases.get(name)) for name, array in record.items()})
    return make_message(reply.metadata, content)


def rounded(values: NDArray[Any], precision: Precision | None) -> NDArray[Any]:
    """The values in that precision, where it is narrower and none leaves its range."""
    if precision is None or values.dtype.kind != "f" or values.dtype.itemsize <= 2:
        return values
    dtype: Any = np.float16
    if precision == "bfloat16":
        dtype = require("ml_dtypes", "compression", "bfloat16 needs ml_dtypes").bfloat16
    with np.errstate(over="ignore"):
        narrow = values.astype(dtype)
    kept: NDArray[Any] = narrow if np.isfinite(narrow).all() or not np.isfinite(values).all() else values
    return kept


def _whole(array: Array, base: Array | None) -> Array:
    if array.stype != SPARSE or base is None:
        return array
    try:
        return densified(base, array)
    except (ValueError, TypeError):
        return array


def _packed(values: NDArray[Any], level: int | None, whole: int, more: bytes = b"") -> tuple[bytes, bool]:
    raw = np.ascontiguousarray(values).tobytes() + more
    if level is None:
        return raw, False
    small: bytes = _zstd().ZstdCompressor(level=level).compress(raw)
    usable = len(small) < len(raw) and max(len(raw), whole) <= _SMALL + LARGEST_RATIO * len(small)
    return (small, True) if usable else (raw, False)


def _unpacked(content: bytes, zstd: bool, size: int) -> bytes:
    if zstd:
        _bounded(size, len(content))
        module = _zstd()
        try:
            if module.frame_content_size(content) != size:
                raise ValueError("compressed data has another length than its array")
            content = module.ZstdDecompressor().decompress(content, max_output_size=size)
        except module.ZstdError as exc:
            raise ValueError(f"compressed data is damaged: {exc}") from exc
    if len(content) != size:
        raise ValueError(f"compressed data is {len(content)} bytes long instead of {size}")
    return content


def _bounded(size: int, content: int) -> None:
    if size > _SMALL + LARGEST_RATIO * content:
        raise ValueError(f"{content} bytes of compressed data would become {size}, which is too much to be meant")


def _read(data: bytes, kind: type[Any]) -> Any:
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise ValueError(f"the data of a compressed array is damaged: {exc}") from exc


def _digest(array: Array) -> bytes:
    values = np.ascontiguousarray(array.numpy(copy=False))
    return hashlib.blake2b(values.tobytes(), digest_size=16, key=dtype_to_wire(values.dtype).encode()).digest()


def _zstd() -> Any:
    return require("zstandard", "compression", "zstd needs zstandard")


def count_bytes(records: Mapping[str, Any]) -> int:
    """Bytes of the arrays of a RecordDict as they travel."""
    return sum(array.nbytes for record in records.values() for array in record.values())
