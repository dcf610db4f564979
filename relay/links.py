"""The register of SuperLinks: who is there, and how many ServerApps each can run."""

from __future__ import annotations

import os
from typing import Any

from fedq.relay.connection import Relay
from fedq.relay.host import worker_known_dead
from fedq.relay.texts import text

BEAT = 5.0
"""Seconds between two words of a SuperLink about its slots."""
TTL = 20.0
"""Seconds after which a SuperLink that says nothing does not count."""


def known_dead(name: str) -> bool:
    """Whether the SuperLink of that name, ``<host>:<pid>-<random>``, was on this host and has certainly ended."""
    return worker_known_dead(name.rpartition("-")[0])


def beat(relay: Relay, name: str, slots: int) -> None:
    """The SuperLink of that name is there."""
    with relay.errors():
        relay.redis.hset(relay.keys.links(), name, f"{slots}|{int(relay.now() * 1000)}|{os.getpid()}")


def leave(relay: Relay, name: str) -> None:
    """It ends."""
    with relay.errors():
        relay.redis.hdel(relay.keys.links(), name)


def live(relay: Relay) -> dict[str, int]:
    """The SuperLinks that are there, and the slots of each. Writes nothing."""
    return _look(relay)[0]


def strike_off(relay: Relay) -> dict[str, int]:
    """The same; those that have been silent for too long, or are known to have died, are forgotten."""
    there, silent = _look(relay)
    if silent:
        with relay.errors():
            relay.redis.hdel(relay.keys.links(), *silent)
    return there


def _look(relay: Relay) -> tuple[dict[str, int], list[str]]:
    with relay.errors():
        raw: Any = relay.redis.hgetall(relay.keys.links())
    there, silent = {}, []
    now = relay.now() if raw else 0.0
    for name, value in raw.items():
        slots, at, _ = text(value).split("|")
        if int(at) / 1000 + TTL < now or known_dead(text(name)):
            silent.append(text(name))
        else:
            there[text(name)] = int(slots)
    return there, silent
