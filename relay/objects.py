"""Arrays on the relay: content-addressed chunks.

An array's key is the SHA-256 of its bytes. Chunks come first and carry an expiry until a push, commit, checkpoint or
finish names the array and makes it permanent in its own step; the manifest ``chunks|bytes`` comes last. What is there
is never written again, so that one broadcast to N nodes stores an array once and a repeated upload costs one look.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fedq.relay.connection import Relay
from fedq.relay.errors import Fenced, ObjectCorrupt, ObjectMissing, RelayFull, RunOver
from fedq.relay.messages import text

Buffer = bytes | bytearray | memoryview

INLINE_LIMIT = 8192
"""Arrays of at most this many bytes travel within their message."""

CHUNK = 4 * 1024 * 1024
"""Bytes per chunk: large enough for throughput, small enough not to hold up the server's other clients."""

IN_FLIGHT = 2
"""Chunks requested or sent before the first is waited for: bounds what the server buffers for one client."""

UNFINISHED_TTL = 15 * 60
"""Seconds that parts of an upload live before a step makes them permanent. Only ever extended."""

FULL_AT = 0.75
"""Share of ``maxmemory`` above which pushes and their uploads stop, so that replies and checkpoints still fit."""


def digest_of(data: Buffer) -> str:
    """The name of an array's bytes."""
    return hashlib.sha256(data).hexdigest()


def check_memory(relay: Relay, wanted: int, *, run: int | None = None) -> None:
    """Raise RelayFull if ``wanted`` more bytes would pass 75 % of the server's ``maxmemory``. Nothing is written."""
    used, limit = relay.memory()
    if limit and used + wanted > FULL_AT * limit:
        raise RelayFull(
            f"the server has {used >> 20} of {limit >> 20} MiB in use and the message needs "
            f"{max(1, wanted >> 20)} MiB more: new messages stop at 75 % of maxmemory "
            "so that replies still fit; raise maxmemory or send less at a time",
            run_id=run,
        )


def upload_shared(
    relay: Relay, run: int, token: str, owner: str, blobs: Mapping[str, Buffer], *, guard: bool = True
) -> int:
    """Make arrays available to every node, owned by ``<run>:<owner>`` (a checkpoint number, ``ctx<n>`` or ``result``).

    Idempotent. Returns the bytes that had to be sent. ``guard`` refuses above 75 % of ``maxmemory`` (RelayFull); a
    checkpoint or result passes False. Raises Fenced or RunOver when the run is no longer this attempt's.
    """
    keys = relay.keys
    missing = _adopt(
        relay, keys.run_objs(run), keys.run(run), token, keys.obj(""), f"{run}:{owner}", blobs, run=run, paired=True
    )
    if guard and missing:
        check_memory(relay, sum(len(memoryview(blobs[d]).cast("B")) for d in missing), run=run)
    return _send(relay, missing, blobs, keys.obj, keys.obj_chunk)


def upload_bundle(relay: Relay, blobs: Mapping[str, Buffer]) -> int:
    """Upload what a submit will name. It expires by itself if no submit does. Idempotent."""
    keys = relay.keys
    missing = _adopt(relay, keys.wake(), "", "", keys.obj(""), "upload", blobs, run=None, paired=True)
    if missing:
        check_memory(relay, sum(len(memoryview(blobs[d]).cast("B")) for d in missing))
    return _send(relay, missing, blobs, keys.obj, keys.obj_chunk)


def upload_node(relay: Relay, node: str, run: int, message: str, blobs: Mapping[str, Buffer]) -> int:
    """Upload arrays of a reply or Context under the node's own prefix. Idempotent. Raises RunOver."""
    keys = relay.keys
    missing = _adopt(
        relay,
        keys.node_objs(node, run),
        keys.run(run),
        "",
        keys.node_obj(node, ""),
        f"up:{run}:{message}",
        blobs,
        run=run,
        paired=False,
    )
    return _send(relay, missing, blobs, lambda d: keys.node_obj(node, d), lambda d, i: keys.node_obj_chunk(node, d, i))


def fetch_shared(relay: Relay, digests: Iterable[str]) -> dict[str, bytearray]:
    """Arrays that a ServerApp side uploaded, verified. Raises ObjectMissing or ObjectCorrupt."""
    keys = relay.keys
    return {d: _fetch(relay, d, keys.obj(d), lambda i, d=d: keys.obj_chunk(d, i)) for d in digests}  # type: ignore[misc]


def fetch_node(relay: Relay, node: str, digests: Iterable[str]) -> dict[str, bytearray]:
    """Arrays that ``node`` uploaded, verified. Raises ObjectMissing or ObjectCorrupt."""
    keys = relay.keys
    return {
        d: _fetch(relay, d, keys.node_obj(node, d), lambda i, d=d: keys.node_obj_chunk(node, d, i))  # type: ignore[misc]
        for d in digests
    }


def _adopt(
    relay: Relay,
    index: str,
    run_key: str,
    token: str,
    prefix: str,
    owner: str,
    digests: Iterable[str],
    *,
    run: int | None,
    paired: bool,
) -> list[str]:
    wanted = list(digests)
    if not wanted:
        return []
    reply = relay.call(
        "adopt",
        [index],
        [
            run_key or relay.keys.run(0),
            token,
            prefix,
            owner,
            int(paired),
            UNFINISHED_TTL * 1000,
            int(run is not None),
            *wanted,
        ],
    )
    outcome = text(reply[0])
    if outcome == "FENCED":
        raise Fenced("another attempt of this ServerApp holds the run now; this one ends", run_id=run)
    if outcome == "OVER":
        raise RunOver(f"run {run} is over ({text(reply[1])}); nothing more is stored for it", run_id=run)
    return [text(item) for item in reply[1:]]


def _send(
    relay: Relay,
    missing: list[str],
    blobs: Mapping[str, Buffer],
    manifest: Callable[[str], str],
    chunk: Callable[[str, int], str],
) -> int:
    """Chunks with NX and an expiry that is only ever extended, then the manifest."""
    sent = 0
    for digest in missing:
        view = memoryview(blobs[digest]).cast("B")
        count = max(1, -(-len(view) // CHUNK))
        for first in range(0, count, IN_FLIGHT):
            with relay.errors(), relay.redis.pipeline(transaction=False) as pipe:
                for i in range(first, min(count, first + IN_FLIGHT)):
                    key, part = chunk(digest, i), view[i * CHUNK : (i + 1) * CHUNK]
                    pipe.set(key, part, ex=UNFINISHED_TTL, nx=True)
                    pipe.expire(key, UNFINISHED_TTL, gt=True)
                    sent += len(part)
                if first + IN_FLIGHT >= count:
                    pipe.set(manifest(digest), f"{count}|{len(view)}", ex=UNFINISHED_TTL, nx=True)
                    pipe.expire(manifest(digest), UNFINISHED_TTL, gt=True)
                pipe.execute()
    return sent


def _fetch(relay: Relay, digest: str, manifest: str, chunk: Callable[[int], str]) -> bytearray:
    """An array by its chunks, read into one buffer, at most IN_FLIGHT of them under way."""
    with relay.errors():
        with relay.redis.pipeline(transaction=False) as pipe:
            pipe.get(manifest)
            pipe.get(chunk(0))
            found, head = pipe.execute()
        if found is None or head is None:
            raise ObjectMissing(f"the array {digest[:12]}… is not on the server (any more)")
        count, nbytes = (int(part) for part in text(found).split("|"))
        whole = bytearray(nbytes)
        at = _place(whole, 0, head, digest)
        for first in range(1, count, IN_FLIGHT):
            with relay.redis.pipeline(transaction=False) as pipe:
                for i in range(first, min(count, first + IN_FLIGHT)):
                    pipe.get(chunk(i))
                parts: list[Any] = pipe.execute()
            for part in parts:
                at = _place(whole, at, part, digest)
    if at != nbytes or digest_of(whole) != digest:
        raise ObjectCorrupt(f"the array {digest[:12]}… on the server has other bytes than its name says")
    return whole


def _place(whole: bytearray, at: int, part: bytes | None, digest: str) -> int:
    if part is None:
        raise ObjectMissing(f"a part of the array {digest[:12]}… is not on the server (any more)")
    if at + len(part) > len(whole):
        raise ObjectCorrupt(f"the array {digest[:12]}… on the server is longer than it says")
    whole[at : at + len(part)] = part
    return at + len(part)
