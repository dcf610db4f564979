"""Keys that nothing will ever delete: of runs that are gone, of nodes that nobody registered, arrays without an owner.

This reads every key name of one home (SCAN), which no service ever does; it is for ``fedq doctor`` alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fedq.relay.connection import Relay
from fedq.relay.nodes import node_names
from fedq.relay.runs import alive_runs
from fedq.relay.texts import text

_OF_RUN = re.compile(r"run:(\d+)(?::(\w+))?\Z")
_OF_NODE = re.compile(r"node:([A-Za-z0-9-]+):(\w+)(?::([^:]+))?(?::(\w+))?\Z")
_OF_OBJECT = re.compile(r"obj:([0-9a-f]{64})(?::(\w+))?\Z")

_KEPT = {None, "events", "objs"}
"""Parts of a run that stay when it has ended and was cleaned up."""

BATCH = 500


@dataclass(frozen=True, slots=True)
class Orphan:
    """A key that should not be there, and why."""

    key: str
    why: str


@dataclass(frozen=True, slots=True)
class Census:
    """What one walk over the keys has seen: how many keys of ours, and the orphans among them."""

    keys: int
    orphans: tuple[Orphan, ...]


def take_census(relay: Relay) -> Census:
    """Look at every key of the home. Two walks: what is gone after the first was in use and is no orphan."""
    first = {orphan.key: orphan for orphan in _walk(relay)}
    count = sum(1 for _ in _scan(relay))
    if not first:
        return Census(count, ())
    second = {orphan.key for orphan in _walk(relay)}
    return Census(count, tuple(orphan for key, orphan in sorted(first.items()) if key in second))


def remove(relay: Relay, orphans: tuple[Orphan, ...]) -> int:
    """Delete orphans; returns how many keys are gone."""
    removed = 0
    with relay.errors():
        for start in range(0, len(orphans), BATCH):
            removed += int(relay.redis.unlink(*(orphan.key for orphan in orphans[start : start + BATCH])))
    return removed


def _scan(relay: Relay) -> Iterator[str]:
    pattern = relay.keys.base.replace("[", r"\[") + "*"
    with relay.errors():
        for key in relay.redis.scan_iter(match=pattern, count=1000):
            yield text(key)


def _walk(relay: Relay) -> Iterator[Orphan]:
    with relay.errors():
        index: Any = relay.redis.zrange(relay.keys.runs(), 0, -1)
        known = {int(item) for item in index}
    alive = set(alive_runs(relay))
    nodes = set(node_names(relay))
    base = relay.keys.base
    outs: list[str] = []
    objects: list[str] = []
    for key in _scan(relay):
        rest = key.removeprefix(base)
        if match := _OF_RUN.match(rest):
            run = int(match[1])
            if run not in known and run not in alive:
                yield Orphan(key, f"run {run} does not exist")
            elif run not in alive and match[2] not in _KEPT:
                yield Orphan(key, f"run {run} is over and cleaned up")
        elif match := _OF_NODE.match(rest):
            node, part, detail = match[1], match[2], match[3]
            if part == "out":
                outs.append(key)
            elif part == "obj":
                if match[4] is None:
                    objects.append(key)
            elif part in ("order", "ctx", "replies", "log", "objs") and detail and detail.isdigit():
                if int(detail) not in alive:
                    yield Orphan(key, f"run {detail} is over and cleaned up, or does not exist")
            elif node not in nodes and part != "alive":
                yield Orphan(key, f"node {node} is not registered")
        elif (match := _OF_OBJECT.match(rest)) and match[2] is None:
            objects.append(key)
    yield from _answers_of_nobody(relay, outs, alive)
    yield from _objects_of_nobody(relay, objects, known, alive)


def _answers_of_nobody(relay: Relay, outs: list[str], alive: set[int]) -> Iterator[Orphan]:
    for start in range(0, len(outs), BATCH):
        batch = outs[start : start + BATCH]
        with relay.errors(), relay.redis.pipeline(transaction=False) as pipe:
            for key in batch:
                pipe.hget(key, "run")
            runs = pipe.execute()
        for key, run in zip(batch, runs, strict=True):
            if run is not None and int(run) not in alive:
                yield Orphan(key, f"an answer of run {int(run)}, which is over")


def _objects_of_nobody(relay: Relay, objects: list[str], known: set[int], alive: set[int]) -> Iterator[Orphan]:
    for start in range(0, len(objects), BATCH):
        batch = objects[start : start + BATCH]
        with relay.errors(), relay.redis.pipeline(transaction=False) as pipe:
            for key in batch:
                pipe.smembers(f"{key}:owners")
                pipe.ttl(key)
            found = pipe.execute()
        for key, owners, ttl in zip(batch, found[::2], found[1::2], strict=True):
            if ttl != -1:
                continue  # an upload that is under way, or was given up: it expires
            if not owners:
                yield Orphan(key, "an array without an owner")
            elif not any(_lives(text(owner), known, alive) for owner in owners):
                yield Orphan(key, "an array of runs that do not exist")


def _lives(owner: str, known: set[int], alive: set[int]) -> bool:
    """Owners are ``<run>:<checkpoint>`` and, at a node, a message id or ``ctx:<run>:<version>`` or ``up:<run>:…``."""
    head, _, rest = owner.partition(":")
    if head in ("ctx", "up"):
        head = rest.partition(":")[0]
        return not head.isdigit() or int(head) in alive
    return not head.isdigit() or not rest or int(head) in known or int(head) in alive
