"""Nodes on the relay: registration, heartbeat, the dispatcher's lease, listing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedq.relay.connection import Relay
from fedq.relay.keys import check_node_name
from fedq.relay.messages import text

HEARTBEAT = 5.0
"""Seconds between two heartbeats of a node."""

ALIVE_TTL = 16.0
"""Seconds after the last heartbeat when a node counts as offline."""

DISPATCHER_LEASE = 16.0
"""Seconds that the dispatcher role is held without renewal."""


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """What a SuperNode says of itself. ``details`` holds versions, host and the like, for people."""

    labels: Mapping[str, str] = field(default_factory=dict)
    slots: int = 1
    isolation: str = "fork"
    host: str = ""
    pid: int = 0
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NodeState:
    """A registered node as everybody sees it."""

    name: str
    online: bool
    info: NodeInfo

    @property
    def labels(self) -> Mapping[str, str]:
        """The labels by which runs select nodes."""
        return self.info.labels

    def matches(self, selector: Mapping[str, str]) -> bool:
        """Whether the node has every label of ``selector``."""
        return matches(self.info.labels, selector)


def matches(labels: Mapping[str, str], selector: Mapping[str, str]) -> bool:
    """Whether ``labels`` holds every pair of ``selector``."""
    return all(labels.get(key) == value for key, value in selector.items())


@dataclass(frozen=True, slots=True)
class Lease:
    """The answer to a claim of a role: ``held`` by the caller, or ``holder`` with the seconds that are left to it."""

    held: bool
    holder: str = ""
    left: float = 0.0


def register(relay: Relay, node: str, info: NodeInfo) -> None:
    """Make the node known, with its labels and capabilities. Idempotent; the newest call wins."""
    check_node_name(node)
    keys = relay.keys
    with relay.errors(), relay.redis.pipeline(transaction=False) as pipe:
        pipe.sadd(keys.nodes(), node)
        pipe.hset(
            keys.node_info(node),
            mapping={
                "labels": json.dumps(dict(info.labels), sort_keys=True),
                "slots": info.slots,
                "isolation": info.isolation,
                "host": info.host,
                "pid": info.pid,
                "details": json.dumps(dict(info.details), sort_keys=True),
            },
        )
        pipe.execute()


def add(relay: Relay, node: str) -> None:
    """Register a name without a SuperNode, so that messages may wait for it."""
    check_node_name(node)
    with relay.errors():
        relay.redis.sadd(relay.keys.nodes(), node)


def forget(relay: Relay, node: str) -> bool:
    """Take a node off the register. True if it was there.

    New messages to it are refused from now on. Those that it has not answered stay until they expire or their run
    ends, and its inbox with them. An online node registers again.
    """
    keys = relay.keys
    with relay.errors():
        known = bool(relay.redis.srem(keys.nodes(), node))
        relay.redis.unlink(keys.node_info(node), keys.node_alive(node), keys.node_dispatcher(node))
        waiting: Any = relay.redis.xrange(keys.inbox(node))
        if not any(fields.get(b"kind") == b"message" for _, fields in waiting):
            relay.redis.unlink(keys.inbox(node), keys.claims(node))
    return known


def beat(relay: Relay, node: str, *, ttl: float = ALIVE_TTL) -> None:
    """The node is alive for ``ttl`` more seconds. Goes through when the server's memory is full."""
    relay.call("beat", [relay.keys.node_alive(node)], ["1", int(ttl * 1000), 1, ""])


def leave(relay: Relay, node: str) -> None:
    """The node goes offline at once, instead of when its heartbeat runs out."""
    with relay.errors():
        relay.redis.delete(relay.keys.node_alive(node))


def take_lease(relay: Relay, key: str, holder: str, *, lease: float, dead: str = "") -> Lease:
    """Take or extend a role's lease. ``dead`` names a holder that the caller knows to be dead."""
    return _lease(relay.call("beat", [key], [holder, int(lease * 1000), 0, dead]), holder, lease)


def _lease(reply: Sequence[Any], holder: str, lease: float) -> Lease:
    if text(reply[0]) == "OK":
        return Lease(True, holder, lease)
    return Lease(False, text(reply[1]), max(0, int(reply[2])) / 1000)


def drop_lease(relay: Relay, key: str, holder: str) -> None:
    """Give a role back, if it is still the caller's."""
    relay.call("beat", [key], [holder, 0, 0, ""])


def take_dispatcher(
    relay: Relay,
    node: str,
    holder: str,
    *,
    lease: float = DISPATCHER_LEASE,
    dead: str = "",
    alive: float | None = None,
) -> Lease:
    """Take or extend the dispatcher role of a node. ``holder`` is ``<id>|<host>|<pid>``.

    With ``alive`` the node is alive for so many more seconds as well, if the role is the caller's: one step for all
    that an idle node costs.
    """
    key = relay.keys.node_dispatcher(node)
    if alive is None:
        return take_lease(relay, key, holder, lease=lease, dead=dead)
    args = [holder, int(lease * 1000), 0, dead, int(alive * 1000)]
    return _lease(relay.call("beat", [key, relay.keys.node_alive(node)], args), holder, lease)


def drop_dispatcher(relay: Relay, node: str, holder: str) -> None:
    """Give the dispatcher role back, so that another SuperNode of the name starts at once."""
    drop_lease(relay, relay.keys.node_dispatcher(node), holder)


def node_names(relay: Relay) -> list[str]:
    """The registered nodes, sorted."""
    with relay.errors():
        raw: Any = relay.redis.smembers(relay.keys.nodes())
    return sorted(text(item) for item in raw)


def online(relay: Relay, names: list[str]) -> dict[str, bool]:
    """Which of ``names`` have a heartbeat, in one round trip."""
    if not names:
        return {}
    with relay.errors():
        raw: Any = relay.redis.mget([relay.keys.node_alive(name) for name in names])
    return {name: value is not None for name, value in zip(names, raw, strict=True)}


def list_nodes(relay: Relay, selector: Mapping[str, str] | None = None) -> list[NodeState]:
    """Every registered node that matches ``selector``, sorted by name, in two round trips."""
    names = node_names(relay)
    if not names:
        return []
    with relay.errors(), relay.redis.pipeline(transaction=False) as pipe:
        pipe.mget([relay.keys.node_alive(name) for name in names])
        for name in names:
            pipe.hgetall(relay.keys.node_info(name))
        alive, *infos = pipe.execute()
    states = [
        NodeState(name, value is not None, _parse_info(raw))
        for name, value, raw in zip(names, alive, infos, strict=True)
    ]
    return [state for state in states if not selector or state.matches(selector)]


def _parse_info(raw: Mapping[bytes, bytes]) -> NodeInfo:
    return NodeInfo(
        labels=json.loads(raw.get(b"labels", b"{}")),
        slots=int(raw.get(b"slots", 0)),
        isolation=text(raw.get(b"isolation", b"")),
        host=text(raw.get(b"host", b"")),
        pid=int(raw.get(b"pid", 0)),
        details=json.loads(raw.get(b"details", b"{}")),
    )
