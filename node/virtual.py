"""Virtual nodes: many names in the federation that one service stands for.

A SuperNode with ``virtual=1000`` registers the nodes ``<name>-000`` to ``<name>-999``. To everybody else each is a node
like any other, with an inbox, claims, Contexts and answers under its own prefix. They share one service, one RQ queue
(named after the service), its workers, and one heartbeat of the service's for all of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fedq.node.settings import NodeSettings
from fedq.relay import nodes
from fedq.relay.connection import Relay
from fedq.relay.texts import text

AT_ONCE = 500
"""Commands sent in one go."""


class VirtualNodes(Mapping[str, NodeSettings]):
    """The virtual nodes of a service by name, each with settings of its own, in order.

    ``<name>-3`` of 10 has ``partition-id=3`` and ``num-partitions=10`` in its config and the label ``partition=3``, as
    the nodes of ``fedq demo`` have; and beside these whatever the service was given.
    """

    def __init__(self, host: NodeSettings) -> None:
        self.host = host
        width = len(str(host.virtual - 1))
        self._numbers = {f"{host.name}-{number:0{width}d}": number for number in range(host.virtual)}
        self._made: dict[str, NodeSettings] = {}

    def __getitem__(self, name: str) -> NodeSettings:
        if name not in self._made:
            number = self._numbers[name]
            self._made[name] = replace(
                self.host,
                name=name,
                virtual=0,
                config={**self.host.config, "partition-id": number, "num-partitions": self.host.virtual},
                labels={**self.host.labels, "partition": str(number)},
            )
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)


def in_batches(items: Sequence[Any], size: int = AT_ONCE) -> Iterator[Sequence[Any]]:
    """Slices of at most ``size`` items."""
    return (items[at : at + size] for at in range(0, len(items), size))


def register(relay: Relay, virtual: VirtualNodes, info: nodes.NodeInfo) -> None:
    """Make every virtual node known, and the service itself to its additional workers. Idempotent.

    The service is no node of the federation: nobody can send it a message.
    """
    for names in in_batches(list(virtual)):
        with relay.errors(), relay.redis.pipeline(transaction=False) as pipe:
            pipe.sadd(relay.keys.nodes(), *names)
            for name in names:
                said = replace(info, labels=virtual[name].labels)
                pipe.hset(relay.keys.node_info(name), mapping=nodes.fields_of(said))
            pipe.execute()
    details = {**info.details, "virtual": len(virtual), "config": dict(virtual.host.config)}
    with relay.errors():
        said = replace(info, details=details)
        relay.redis.hset(relay.keys.node_info(virtual.host.name), mapping=nodes.fields_of(said))


def beat(relay: Relay, virtual: VirtualNodes, *, ttl: float) -> None:
    """All of them are alive for ``ttl`` more seconds: a few commands for 1,000 nodes' worth of them.

    An expiry is extended where there is one, so that it goes through when the server's memory is full.
    """
    for names in in_batches(list(virtual)):
        keys = [relay.keys.node_alive(name) for name in names]
        with relay.errors(), relay.redis.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.pexpire(key, int(ttl * 1000))
            lapsed = [key for key, there in zip(keys, pipe.execute(), strict=True) if not there]
            for key in lapsed:
                pipe.set(key, "1", px=int(ttl * 1000))
            if lapsed:
                pipe.execute()


def leave(relay: Relay, virtual: VirtualNodes) -> None:
    """All of them go offline at once."""
    for names in in_batches(list(virtual)):
        with relay.errors():
            relay.redis.unlink(*(relay.keys.node_alive(name) for name in names))


def forget(relay: Relay, virtual: VirtualNodes) -> None:
    """Take them and their service off the register, with their inboxes. For when no run uses them any more."""
    keys = relay.keys
    for names in in_batches(list(virtual)):
        with relay.errors(), relay.redis.pipeline(transaction=False) as pipe:
            pipe.srem(keys.nodes(), *names)
            for name in names:
                pipe.unlink(keys.node_info(name), keys.node_alive(name), keys.inbox(name), keys.claims(name))
            pipe.execute()
    host = virtual.host.name
    with relay.errors():
        relay.redis.unlink(keys.node_info(host), keys.node_alive(host), keys.node_dispatcher(host), keys.inbox(host))


def known_service(relay: Relay, name: str) -> tuple[int, dict[str, Any]] | None:
    """How many virtual nodes the service ``name`` stands for, and their common config; None if it is a plain node."""
    with relay.errors():
        raw: Any = relay.redis.hget(relay.keys.node_info(name), "details")
    details = json.loads(text(raw)) if raw else {}
    return (int(details["virtual"]), dict(details.get("config", {}))) if details.get("virtual") else None


__all__ = ["VirtualNodes", "beat", "forget", "in_batches", "known_service", "leave", "register"]
