"""The frame around a header and its blocks: prefix, alignment, exact lengths."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import TypeVar

import msgspec

from fedq.apps.errors import UnencodableValue, WireError
from fedq.apps.wire.buffer import Buffer

__all__ = ["ALIGNMENT", "VERSION", "Blocks", "Kind", "open_frame", "write_frame"]

VERSION = 2
ALIGNMENT = 64
"""Blocks start at multiples of this: a cache line, and enough for the vector instructions of today's processors."""

MAGIC = b"fedq"
PREFIX = struct.Struct("<4sBBHQ")
_ZEROS = bytes(ALIGNMENT)

H = TypeVar("H")


class Kind(IntEnum):
    """What a frame holds."""

    RECORDS = 1
    ERROR = 2
    CONFIG = 3
    MESSAGE = 4
    CONTEXT = 5


def _names(kind: int) -> str:
    return Kind(kind).name.lower() if kind in Kind.__members__.values() else f"kind {kind}"


_encoder = msgspec.msgpack.Encoder()


def _culprit(header: object) -> tuple[str, ...]:
    """The names on the way to the value that cannot be encoded."""
    parts = msgspec.structs.astuple(header) if isinstance(header, msgspec.Struct) else header
    if not isinstance(parts, list | tuple):
        return ()
    for part in parts:
        try:
            _encoder.encode(part)
        except (OverflowError, UnicodeError):
            # What has a name begins with it, records and pairs alike.
            named = not isinstance(header, list) and isinstance(parts[0], str) and part is not parts[0]
            return ((repr(parts[0]),) if named else ()) + _culprit(part)
    return ()


def write_frame(kind: Kind, header: object, blocks: Sequence[Buffer]) -> bytes:
    """The bytes of a frame. Raises UnencodableValue for integers beyond 64 bits and text that is no Unicode."""
    try:
        head = _encoder.encode(header)
    except (OverflowError, UnicodeError) as error:
        where = "/".join(_culprit(header)) or "a value"
        raise UnencodableValue(
            f"{where} cannot be sent: {error}. Integers have at most 64 bits, text is valid Unicode; "
            "put larger numbers into a ConfigRecord as bytes or str"
        ) from error
    parts: list[Buffer] = [PREFIX.pack(MAGIC, VERSION, kind, 0, len(head)), head]
    position = PREFIX.size + len(head)
    for block in blocks:
        padding = -position % ALIGNMENT
        if padding:
            parts.append(_ZEROS[:padding])
        parts.append(block)
        position += padding + len(block)
    return b"".join(parts)


class Blocks:
    """Takes the blocks of a frame one after the other, and checks that they fill it exactly."""

    __slots__ = ("_position", "_view")

    def __init__(self, view: memoryview, position: int) -> None:
        self._view = view
        self._position = position

    def take(self, nbytes: int) -> memoryview:
        """The next block, of this many bytes; empty blocks take no place. Raises WireError if it is not there."""
        if nbytes == 0:
            return self._view[:0]
        start = self._position + -self._position % ALIGNMENT
        end = start + nbytes
        if end > len(self._view):
            raise WireError(f"the data is truncated: an array ends at byte {end} of {len(self._view)}")
        if self._view[self._position : start] != _ZEROS[: start - self._position]:
            raise WireError("the data is damaged: there is something between two arrays")
        self._position = end
        return self._view[start:end]

    def close(self) -> None:
        """Raise WireError unless everything was taken."""
        rest = len(self._view) - self._position
        if rest:
            raise WireError(f"the data is damaged: {rest} bytes too many at its end")


def open_frame(data: Buffer, kind: Kind, decoder: msgspec.msgpack.Decoder[H]) -> tuple[H, Blocks]:
    """Header and blocks of a frame, checked against its prefix. Raises WireError."""
    view = memoryview(data).toreadonly()
    if view.format != "B" or view.ndim != 1:
        view = view.cast("B")
    if len(view) < PREFIX.size:
        raise WireError(f"the data is truncated: {len(view)} bytes are less than a frame has")
    magic, version, found, reserved, length = PREFIX.unpack_from(view)
    if magic != MAGIC:
        raise WireError("the data is not in fedq's wire format")
    if version != VERSION:
        raise WireError(
            f"the data has version {version} of the wire format, this fedq knows version {VERSION}: "
            "use the same release of fedq on all machines"
        )
    if found != kind or reserved:
        raise WireError(f"the data holds {_names(found)} where {_names(kind)} was expected")
    end = PREFIX.size + length
    if end > len(view):
        raise WireError(f"the data is truncated: its header ends at byte {end} of {len(view)}")
    try:
        header = decoder.decode(view[PREFIX.size : end])
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError) as error:
        raise WireError(f"the header of the data is damaged: {error}") from error
    return header, Blocks(view, end)
