"""Nodes on the relay: registration, heartbeat, the dispatcher's lease, listing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedq.relay.connection import Relay
from fedq.relay.keys import check_node_name
from fedq.relay.texts import text

HEARTBEAT = 5.0
"""Seconds between two heartbeats of a node."""

ALIVE_TTL = 16.0
"""Seconds after the last heartbeat when a node counts as offline."""

DISPATCHER_LEASE = 16.0
"""Seconds that the dispatcher role is held without renewal."""

ASKED = 1000
"""Nodes that one command asks for."""
FIELDS = ("labels", "slots", "isolation", "host", "pid", "mods", "details")
"""What a node says of itself; the last one may be long."""


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """What a SuperNode says of itself.

    ``details`` holds versions, host and the like, for people; ``mods`` names what it imposes, the outermost first.
    """

    labels: Mapping[str, str] = field(default_factory=dict)
    slots: int = 1
    isolation: str = "fork"
    host: str = ""
    pid: int = 0
    details: Mapping[str, Any] = field(default_factory=dict)
    mods: tuple[str, ...] = ()


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
        pipe.hset(keys.node_info(node), mapping=fields_of(info))
        pipe.execute()


def fields_of(info: NodeInfo) -> dict[Any, Any]:
    """The fields of ``node:<n>:info``."""
    return {
        "labels": json.dumps(dict(info.labels), sort_keys=True),
        "slots": info.slots,
        "isolation": info.isolation,
        "host": info.host,
        "pid": info.pid,
        "details": json.dumps(dict(info.details), sort_keys=True),
        "mods": json.dumps(info.mods),
    }


def impose(relay: Relay, node: str, mods: Sequence[str]) -> None:
    """Tell what the node imposes before it is registered: by a SuperNode whose worker dispatches at the moment."""
    with relay.errors():
        relay.redis.hset(relay.keys.node_info(node), "mods", json.dumps(list(mods)))


def imposed(relay: Relay, node: str) -> tuple[str, ...] | None:
    """What its SuperNode said that it imposes; None: it has not been there yet."""
    with relay.errors():
        raw: Any = relay.redis.hget(relay.keys.node_info(node), "mods")
    return None if raw is None else tuple(json.loads(raw))


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


def count(relay: Relay) -> int:
    """How many nodes are registered."""
    with relay.errors():
        number: Any = relay.redis.scard(relay.keys.nodes())
    return int(number)


def online(relay: Relay, names: list[str]) -> dict[str, bool]:
    """Which of ``names`` have a heartbeat, in one round trip."""
    if not names:
        return {}
    before, after = relay.keys.node_alive("|").split("|")
    found: list[bytes | None] = []
    with relay.errors(), relay.redis.pipeline(transaction=False) as pipe:
        # In parts, so that nobody waits for thousands of them.
        for start in range(0, len(names), ASKED):
            pipe.mget([f"{before}{name}{after}" for name in names[start : start + ASKED]])
        for values in pipe.execute():
            found += values
    return {name: value is not None for name, value in zip(names, found, strict=True)}


def roster(relay: Relay, selector: Mapping[str, str] | None = None, *, registered: bool = False) -> list[str]:
    """The nodes that match ``selector``, sorted: those that are online, or all that are ``registered``."""
    if selector:
        states = list_nodes(relay, selector, details=False)
        return [state.name for state in states if registered or state.online]
    names = node_names(relay)
    if registered:
        return names
    return [name for name, there in online(relay, names).items() if there]


def list_nodes(
    relay: Relay,
    selector: Mapping[str, str] | None = None,
    *,
    details: bool = True,
) -> list[NodeState]:
    """Every registered node that matches ``selector``, sorted by name.

    Without ``details`` those stay empty. A round trip for every thousand nodes, each of which holds nobody up.
    """
    asked = node_names(relay)
    fields = FIELDS if details else FIELDS[:-1]
    width = len(fields) + 1
    head = [relay.keys.node("|").split("|")[0], len(fields), *fields]
    states: list[NodeState] = []
    for start in range(0, len(asked), ASKED):
        part = asked[start : start + ASKED]
        flat = relay.call("infos", [relay.keys.nodes()], [*head, *part])
        for place, name in enumerate(part):
            there, *values = flat[place * width : (place + 1) * width]
            labels = json.loads(values[0].decode()) if values[0] else {}
            if not selector or matches(labels, selector):
                states.append(NodeState(name, there == b"1", _parse_info(labels, *values[1:])))
    return states


def _parse_info(
    labels: Mapping[str, str],
    slots: bytes,
    isolation: bytes,
    host: bytes,
    pid: bytes,
    mods: bytes,
    details: bytes = b"",
) -> NodeInfo:
    return NodeInfo(
        labels=labels,
        slots=int(slots or 0),
        isolation=text(isolation),
        host=text(host),
        pid=int(pid or 0),
        details=json.loads(details.decode()) if details else {},
        mods=tuple(json.loads(mods)) if mods and mods != b"[]" else (),
    )
