"""Contexts in the relay: the newest entry of a stream wins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fedq.relay.connection import Relay
from fedq.relay.texts import text, words

KEPT_VERSIONS = 2
"""Versions of a node's Context that stay: the newest, and the one before it for whoever investigates."""


@dataclass(frozen=True, slots=True)
class ContextVersion:
    """One version: wire data of the Context's state, the digests it names, and, for a ServerApp, its checkpoint.

    ``free`` lists the messages that the checkpoint folded, whose freeing may still be under way.
    """

    entry: str
    data: bytes
    objects: tuple[str, ...] = ()
    checkpoint: int = 0
    free: tuple[str, ...] = ()


def parse_version(raw: Any) -> ContextVersion | None:
    """An entry of a Context stream as a step returns it, or None."""
    if not raw:
        return None
    entry, fields = raw
    if not isinstance(fields, dict):
        flat = list(fields)
        fields = dict(zip(flat[::2], flat[1::2], strict=True))
    return ContextVersion(
        entry=text(entry),
        data=fields[b"data"],
        objects=words(fields.get(b"objs", b"")),
        checkpoint=int(fields.get(b"checkpoint", 0)),
        free=words(fields.get(b"free", b"")),
    )


def node_context(relay: Relay, node: str, run: int) -> ContextVersion | None:
    """The newest Context of (run, node), or None before the first commit."""
    return _newest(relay, relay.keys.node_ctx(node, run))


def _newest(relay: Relay, key: str) -> ContextVersion | None:
    with relay.errors():
        found: Any = relay.redis.xrevrange(key, count=1)
    return parse_version(found[0]) if found else None
