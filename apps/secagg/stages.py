"""The stages of secure aggregation and what their messages carry."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from fedq.apps.configrecord import ConfigRecord
from fedq.apps.errors import InconsistentReply
from fedq.apps.recorddict import RecordDict

RECORD = "fedq.secagg"
"""The ConfigRecord in messages and replies that says which stage this is, and the node's in its Context."""

MASKED = "fedq.secagg.masked"
"""The ArrayRecord of a masked reply. Its one array, of the same name, is flat."""

SETUP, SHARE, COLLECT, UNMASK = "setup", "share", "collect", "unmask"


class PublicKeys(msgspec.Struct, frozen=True):
    """Answer to `setup`. One key agrees on the encryption of shares, the other on masks; X25519, 32 bytes each.

    The signature is that of a node with an identity (`fedq.apps.secagg.identity`), else empty.
    """

    transport: bytes
    mask: bytes
    signature: bytes = b""


class ShareRequest(msgspec.Struct, frozen=True):
    """`share`: the neighbours' keys, and how many of their shares give a secret back."""

    threshold: int
    neighbours: dict[str, PublicKeys]


class Shares(msgspec.Struct, frozen=True):
    """Answer to `share`: for each neighbour its encrypted share, and a digest of the node's own seed."""

    sealed: dict[str, bytes]
    commitment: bytes


class CollectRequest(msgspec.Struct, frozen=True):
    """`collect`, beside the wrapped strategy's message: the shares for this node, and how to quantise."""

    sealed: dict[str, bytes]
    clipping_range: float
    quantization_bits: int
    modulus_bits: int
    max_weight: int
    weighted_by_key: str


class UnmaskRequest(msgspec.Struct, frozen=True):
    """`unmask`: the neighbours whose masked vector arrived, and those whose did not."""

    survivors: list[str]
    dropped: list[str]


class RevealedShares(msgspec.Struct, frozen=True):
    """Answer to `unmask`: for each neighbour one share, (index, 16 bytes): of its own seed, or of its mask key."""

    seeds: dict[str, tuple[int, bytes]]
    keys: dict[str, tuple[int, bytes]]


class Share(msgspec.Struct, frozen=True):
    """What is sealed for one neighbour."""

    index: int
    seed: bytes
    key: bytes


T = TypeVar("T")


def record(stage: str, session: str, payload: msgspec.Struct | None = None) -> ConfigRecord:
    """The ConfigRecord of a stage."""
    data = b"" if payload is None else msgspec.msgpack.encode(payload, order="sorted")
    return ConfigRecord({"stage": stage, "session": session, "payload": data})


def payload(content: RecordDict, stage: str, session: str, kind: type[T]) -> T:
    """The payload of a reply to a stage.

    Raises:
        InconsistentReply: it is none.
    """
    config = content.config_records.get(RECORD)
    if config is None:
        raise InconsistentReply(f"it has no {RECORD!r}: the ClientApp needs secaggplus_mod as its outermost mod")
    if (config.get("stage"), config.get("session")) != (stage, session):
        raise InconsistentReply(f"it belongs to {config.get('stage')!r} of {config.get('session')!r}, not to {stage!r}")
    return decoded(config.get("payload"), kind)


def decoded(data: object, kind: type[T]) -> T:
    """Bytes as a Struct. Raises InconsistentReply if they are none."""
    try:
        return msgspec.msgpack.decode(data if isinstance(data, bytes) else b"", type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise InconsistentReply(f"its payload is no {kind.__name__}: {exc}") from exc
