"""The headers, as MessagePack arrays of fixed layout. A change here is a change of `frame.VERSION`.

Mappings are lists of pairs, so that their order is kept and a name that comes twice is seen.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from msgspec import Meta, Struct

__all__ = [
    "ArrayEntry",
    "ArraysEntry",
    "ConfigEntry",
    "ConfigPairs",
    "ContextHeader",
    "ErrorHeader",
    "MessageHeader",
    "MetadataHeader",
    "MetricsEntry",
    "RecordEntry",
]

# NumPy's own limit on dimensions is 64 from version 2.0 on, 32 before.
Dimension: TypeAlias = Annotated[int, Meta(ge=0)]
# Where an Array was not made of a NumPy array, its fields are whatever its author wrote.
AnyShape: TypeAlias = Annotated[tuple[int, ...], Meta(max_length=64)]

ConfigPairs: TypeAlias = list[tuple[str, bool | int | float | str]]


class ArrayEntry(Struct, array_like=True, forbid_unknown_fields=True):
    """One array. `stype` is None for a NumPy array in raw form; else dtype, shape and bytes are as their author wrote.

    `digest` is that of the content (BLAKE3) if it stands beside the data, empty if it is the next block of the data.
    """

    name: str
    dtype: str
    shape: AnyShape
    fortran: bool
    stype: str | None
    nbytes: Dimension
    digest: str


class ArraysEntry(Struct, array_like=True, forbid_unknown_fields=True, tag="a"):
    """An ArrayRecord."""

    name: str
    arrays: list[ArrayEntry]


class MetricsEntry(Struct, array_like=True, forbid_unknown_fields=True, tag="m"):
    """A MetricRecord."""

    name: str
    metrics: list[tuple[str, int | float | list[int | float]]]


class ConfigEntry(Struct, array_like=True, forbid_unknown_fields=True, tag="c"):
    """A ConfigRecord. Its values are checked by the record: str beside bytes cannot be declared here."""

    name: str
    values: list[tuple[str, Any]]


RecordEntry: TypeAlias = ArraysEntry | MetricsEntry | ConfigEntry


class ErrorHeader(Struct, array_like=True, forbid_unknown_fields=True):
    """An Error."""

    code: int
    reason: str | None
    traceback: str | None


class MetadataHeader(Struct, array_like=True, forbid_unknown_fields=True):
    """A Metadata."""

    run_id: int
    message_id: str
    src_node_id: str
    dst_node_id: str
    reply_to_message_id: str
    group_id: str
    created_at: float
    ttl: float
    message_type: str


class MessageHeader(Struct, array_like=True, forbid_unknown_fields=True):
    """A Message: exactly one of `error` and `records`."""

    metadata: MetadataHeader
    error: ErrorHeader | None
    records: list[RecordEntry] | None


class ContextHeader(Struct, array_like=True, forbid_unknown_fields=True):
    """A Context."""

    run_id: int
    node_id: str
    node_config: ConfigPairs
    run_config: ConfigPairs
    records: list[RecordEntry]
