"""Records as bytes and back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from fedq.apps.array import NUMPY, Array, is_fortran
from fedq.apps.arrayrecord import ArrayRecord
from fedq.apps.configrecord import ConfigRecord
from fedq.apps.digest import digest_of
from fedq.apps.dtypes import dtype_from_wire, dtype_name, dtype_to_wire
from fedq.apps.errors import WireError
from fedq.apps.metricrecord import MetricRecord
from fedq.apps.recorddict import RecordDict, RecordType
from fedq.apps.typing import Dtype, NDArray
from fedq.apps.wire.buffer import Buffer
from fedq.apps.wire.frame import Blocks, Kind, open_frame, write_frame
from fedq.apps.wire.header import ArrayEntry, ArraysEntry, ConfigEntry, MetricsEntry, RecordEntry

__all__ = ["Encoded", "Reader", "Writer", "content_of", "decode", "encode", "referenced"]

_HEX = frozenset("0123456789abcdef")
# Below this size a copy is cheaper than the views that would avoid it.
_SMALL = 4096

_decoder = msgspec.msgpack.Decoder(list[RecordEntry])


@dataclass(frozen=True)
class Encoded:
    """Records as bytes.

    Attributes
    ----------
    data
        Everything but the arrays that were too large.
    blobs
        Those, by the digest of their bytes (`fedq.apps.digest`). The memory belongs to the record: nothing was copied.
    """

    data: bytes
    blobs: dict[str, memoryview]


def encode(record: RecordDict, *, inline_limit: int | None = None) -> Encoded:
    """Records as bytes.

    Parameters
    ----------
    record
        What to encode.
    inline_limit
        Arrays of more bytes than this go into `blobs`; None: all stand in `data`.

    Raises UnencodableValue for integers beyond 64 bits and text that is no Unicode, UnsupportedDtype for arrays that
    cannot travel.
    """
    writer = Writer(inline_limit)
    return Encoded(write_frame(Kind.RECORDS, writer.entries(record), writer.blocks), writer.blobs)


def decode(
    data: Buffer,
    blobs: Mapping[str, Buffer] | None = None,
    *,
    lazy: bool = False,
    verify: bool = False,
    verified: bool = False,
) -> RecordDict:
    """Records from bytes. Their arrays are read-only views of `data` and of `blobs`.

    Parameters
    ----------
    data
        What `encode` gave.
    blobs
        The arrays that stand beside the data, by digest.
    lazy
        Look into `blobs` only when an array is first used, so that a mapping which fetches can be given.
    verify
        Check the digests of what comes from `blobs`; for those who fetched it from somewhere they do not trust.
    verified
        The caller has checked them: arrays that are sent on are not hashed again.

    Raises WireError, also later where `lazy` leaves something for later.
    """
    entries, blocks = open_frame(data, Kind.RECORDS, _decoder)
    records = Reader(blobs, lazy, verify, verified).records(entries, blocks)
    blocks.close()
    return records


def referenced(data: Buffer) -> dict[str, int]:
    """Digests that `data` names, with the sizes in bytes. Decodes the header alone. Raises WireError."""
    entries, _ = open_frame(data, Kind.RECORDS, _decoder)
    sizes: dict[str, int] = {}
    for record in entries:
        if isinstance(record, ArraysEntry):
            for entry in record.arrays:
                if entry.digest:
                    _check_digest(entry)
                    if sizes.setdefault(entry.digest, entry.nbytes) != entry.nbytes:
                        raise WireError(f"the data is damaged: the array {entry.digest} is named with two sizes")
    return sizes


class Writer:
    """Makes the header of records, and gathers their arrays."""

    def __init__(self, inline_limit: int | None = None) -> None:
        self._limit = math.inf if inline_limit is None else inline_limit
        self.blocks: list[Buffer] = []
        self.blobs: dict[str, memoryview] = {}

    def entries(self, records: RecordDict) -> list[RecordEntry]:
        """The header of a RecordDict."""
        return [self._entry(name, record) for name, record in records.items()]

    def _entry(self, name: str, record: RecordType) -> RecordEntry:
        name = str(name)
        if isinstance(record, ArrayRecord):
            return ArraysEntry(name, [self._array(str(key), array) for key, array in record.items()])
        if isinstance(record, MetricRecord):
            return MetricsEntry(name, [(str(key), _plain(value)) for key, value in record.items()])
        return ConfigEntry(name, [(str(key), _plain(value)) for key, value in record.items()])

    def _array(self, key: str, array: Array) -> ArrayEntry:
        view = _raw_of(array)
        content: Buffer
        if view is None:
            content = memoryview(array.data)
            entry = ArrayEntry(key, array.dtype, array.shape, False, array.stype, len(content), "")
        else:
            nbytes = view.nbytes
            entry = ArrayEntry(key, dtype_to_wire(view.dtype), view.shape, is_fortran(view), None, nbytes, "")
            small = nbytes < _SMALL and nbytes <= self._limit
            content = view.tobytes("A") if small else _memory(view)
        if entry.nbytes > self._limit:
            entry.digest = array._digest or digest_of(content)
            array._digest = entry.digest
            self.blobs[entry.digest] = memoryview(content)
        elif entry.nbytes:
            self.blocks.append(content)
        return entry


def content_of(array: Array) -> memoryview:
    """The bytes of an array as the wire has them, which its digest names. Not copied where they lie in one piece."""
    view = _raw_of(array)
    return memoryview(array.data) if view is None else _memory(view).toreadonly()


def _raw_of(array: Array) -> NDArray | None:
    """The content as a NumPy array that agrees with the other fields; None if it is none, and goes as it is."""
    if array.stype != NUMPY:
        return None
    try:
        view = array._raw()
    except ValueError:
        return None
    return view if (dtype_name(view.dtype), view.shape) == (array.dtype, array.shape) else None


def _memory(view: NDArray) -> memoryview:
    return view.reshape(-1, order="A").view(np.uint8).data


# str(value) would be the name of a member where value is of an enum that is a str too.
_CONVERT: dict[type, Callable[[Any], Any]] = {bool: bool, int: int, float: float, str: str.__str__, bytes: bytes}


def _plain(value: Any) -> Any:
    """The value in Python's own types: NumPy's float64 is a float too, and an IntEnum an int."""
    if type(value) in _CONVERT:
        return value
    if isinstance(value, list):
        kinds = set(map(type, value))
        if not kinds or (len(kinds) == 1 and kinds <= _CONVERT.keys()):
            return value
        # The first element says what the list is of, as in the check of the record.
        convert = _converter(value[0])
        return [convert(element) for element in value]
    return _converter(value)(value)


def _converter(value: Any) -> Callable[[Any], Any]:
    for kind, convert in _CONVERT.items():
        if isinstance(value, kind):
            return convert
    raise TypeError(f"no record holds {type(value).__name__}")


class Reader:
    """Makes records of a header and its blocks."""

    def __init__(
        self,
        blobs: Mapping[str, Buffer] | None = None,
        lazy: bool = False,
        verify: bool = False,
        verified: bool = False,
    ) -> None:
        self._blobs: Mapping[str, Buffer] = {} if blobs is None else blobs
        self._lazy = lazy
        self._verify = verify
        self._verified = verified

    def records(self, entries: list[RecordEntry], blocks: Blocks) -> RecordDict:
        """The RecordDict of a header."""
        records = RecordDict()
        for entry in entries:
            record: RecordType
            if isinstance(entry, ArraysEntry):
                record = ArrayRecord()
                record._data = {item.name: self._array(item, blocks) for item in entry.arrays}
                count = len(entry.arrays)
            elif isinstance(entry, MetricsEntry):
                record = MetricRecord()
                _fill(record, entry.metrics)
                count = len(entry.metrics)
            else:
                record = ConfigRecord()
                _fill(record, entry.values)
                count = len(entry.values)
            if len(record) != count:
                raise WireError(f"the data is damaged: the record {entry.name!r} has a name twice")
            records._data[entry.name] = record
        if len(records) != len(entries):
            raise WireError("the data is damaged: it has two records of one name")
        return records

    def _array(self, entry: ArrayEntry, blocks: Blocks) -> Array:
        make: Callable[[ArrayEntry, memoryview], NDArray | memoryview] = _opaque
        dtype = entry.dtype
        if entry.stype is None:
            make = _raw
            dtype = dtype_name(_check_raw(entry))
        if not entry.digest:
            content = make(entry, blocks.take(entry.nbytes))
            if isinstance(content, np.ndarray):
                return Array._of_view(content)
            return Array._of_parts(dtype, entry.shape, entry.stype or "", content, None, entry.nbytes, None)
        _check_digest(entry)

        def load() -> NDArray | memoryview:
            return make(entry, self._blob(entry))

        stype = NUMPY if entry.stype is None else entry.stype
        # A digest that was not verified is a claim: it must not name this content when it is encoded again.
        digest = entry.digest if self._verify or self._verified else None
        array = Array._of_parts(dtype, entry.shape, stype, None, load, entry.nbytes, digest)
        if not self._lazy:
            array._fetch()
        return array

    def _blob(self, entry: ArrayEntry) -> memoryview:
        try:
            blob = memoryview(self._blobs[entry.digest]).toreadonly().cast("B")
        except KeyError:
            raise WireError(
                f"the array {entry.name!r} is not at hand: its content {entry.digest} ({entry.nbytes} bytes) is missing"
            ) from None
        if len(blob) != entry.nbytes:
            raise WireError(f"the array {entry.name!r} has {len(blob)} bytes where {entry.nbytes} were announced")
        if self._verify and digest_of(blob) != entry.digest:
            raise WireError(f"the content of the array {entry.name!r} is damaged: its digest is not {entry.digest}")
        return blob


def _check_digest(entry: ArrayEntry) -> None:
    if len(entry.digest) != 64 or not _HEX.issuperset(entry.digest):
        raise WireError(f"the data is damaged: the array {entry.name!r} has no proper digest")


def _check_raw(entry: ArrayEntry) -> Dtype:
    """Raise WireError unless dtype and shape give the size that is announced; integers of Python do not overflow."""
    dtype = dtype_from_wire(entry.dtype)
    if min(entry.shape, default=0) < 0 or math.prod(entry.shape) * dtype.itemsize != entry.nbytes:
        raise WireError(
            f"the data is damaged: an array of shape {entry.shape} and dtype {dtype} does not have {entry.nbytes} bytes"
        )
    return dtype


def _raw(entry: ArrayEntry, content: memoryview) -> NDArray:
    try:
        return np.ndarray(
            entry.shape, dtype_from_wire(entry.dtype), buffer=content, order="F" if entry.fortran else "C"
        )
    except (ValueError, TypeError, OverflowError) as error:
        # Dimensions beyond what NumPy can hold beside a dimension of zero, or too many dimensions.
        raise WireError(f"the array {entry.name!r} cannot exist here: {error}") from error


def _opaque(entry: ArrayEntry, content: memoryview) -> memoryview:
    return content


def _fill(record: MetricRecord | ConfigRecord, pairs: list[tuple[str, Any]]) -> None:
    try:
        for key, value in pairs:
            record._check_value(key, value)
            record._data[key] = value
    except TypeError as error:
        raise WireError(f"the data is damaged: {error}") from error
