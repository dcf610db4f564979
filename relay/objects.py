"""Arrays on the relay: content-addressed chunks.

An array's key is the digest of its bytes (:mod:`fedq.apps.digest`). Chunks come first and carry an expiry until a push,
commit, checkpoint or finish names the array and makes it permanent in its own step; the manifest ``chunks|bytes`` comes
last. What is there is never written again, so that one broadcast to N nodes stores an array once and a repeated upload
costs one look.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

from fedq.apps.digest import Digest
from fedq.relay.bulk import Line, command, directly
from fedq.relay.connection import Relay
from fedq.relay.errors import Fenced, ObjectCorrupt, ObjectMissing, RelayFull, RunOver
from fedq.relay.texts import text

Buffer = bytes | bytearray | memoryview

INLINE_LIMIT = 8192
"""Arrays of at most this many bytes travel within their message."""

CHUNK = 4 * 1024 * 1024 - 1024
"""Bytes per chunk: large enough for throughput, small enough not to hold up the server's other clients. A little less
than a power of two: with its header the server would otherwise keep it in an allocation of the next size, 5 MiB."""

IN_FLIGHT = 2
"""Chunks requested or sent before the first is waited for: bounds what the server buffers for one client."""

UNFINISHED_TTL = 15 * 60
"""Seconds that parts of an upload live before a step makes them permanent. Only ever extended."""

FULL_AT = 0.75
"""Share of ``maxmemory`` above which pushes and their uploads stop, so that replies and checkpoints still fit."""


LOOK_LASTS = 1.0
"""Seconds that a look at the server's memory is good for, while that is far from full."""


def check_memory(relay: Relay, wanted: int, *, run: int | None = None) -> None:
    """Raise RelayFull if ``wanted`` more bytes would pass 75 % of the server's ``maxmemory``. Nothing is written.

    The server is not asked each time, as long as what this handle has announced since would not even fill half of that.
    """
    at, used, limit = relay.memory_seen
    if time.monotonic() < at + LOOK_LASTS and (not limit or used + wanted <= FULL_AT / 2 * limit):
        relay.memory_seen = (at, used + wanted, limit)
        return
    used, limit = relay.memory()
    relay.memory_seen = (time.monotonic(), used + wanted, limit)
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


class Place(Protocol):
    """Where an array comes to lie as it arrives, from its first byte to its last."""

    def room(self, left: int) -> memoryview:
        """Where to receive the next bytes: at least one, and at most ``left`` of them."""

    def filled(self, count: int) -> None:
        """So many of them have been received there."""

    def verified(self) -> memoryview:
        """The array is there, and has the bytes that its name says. It is read-only."""

    def close(self) -> None:
        """Nothing comes any more, whether or not it was verified. What `verified` returned stays as it is."""


PlaceFor = Callable[[str, int], "Place | None"]
"""The place for a digest and so many bytes; None leaves it to this module, which takes memory."""


def fetch_shared(relay: Relay, digests: Iterable[str], place_for: PlaceFor | None = None) -> dict[str, memoryview]:
    """Arrays that a ServerApp side uploaded, verified. Raises ObjectMissing or ObjectCorrupt."""
    keys = relay.keys
    return _fetch(relay, [_Source(d, keys.obj(d), partial(keys.obj_chunk, d)) for d in digests], place_for)


def fetch_node(
    relay: Relay, node: str, digests: Iterable[str], place_for: PlaceFor | None = None
) -> dict[str, memoryview]:
    """Arrays that ``node`` uploaded, verified. Raises ObjectMissing or ObjectCorrupt."""
    keys = relay.keys
    sources = [_Source(d, keys.node_obj(node, d), partial(keys.node_obj_chunk, node, d)) for d in digests]
    return _fetch(relay, sources, place_for)


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
    """Chunks with NX and an expiry that is only ever extended, then the manifest. At most IN_FLIGHT unanswered."""
    sizes = {digest: memoryview(blobs[digest]).nbytes for digest in missing}

    def requests() -> Iterator[list[tuple[str, Buffer]]]:
        for digest in missing:
            view = memoryview(blobs[digest]).cast("B")
            count = max(1, -(-len(view) // CHUNK))
            for i in range(count):
                values: list[tuple[str, Buffer]] = [(chunk(digest, i), view[i * CHUNK : (i + 1) * CHUNK])]
                if i == count - 1:
                    values.append((manifest(digest), f"{count}|{len(view)}".encode()))
                yield values

    def over_sockets(line: Line) -> None:
        unanswered: deque[int] = deque()
        for values in requests():
            parts: list[bytes | memoryview] = []
            for key, value in values:
                parts += command("SET", key, memoryview(value), "EX", UNFINISHED_TTL, "NX")
                parts += command("EXPIRE", key, UNFINISHED_TTL, "GT")
            line.send(*parts)
            unanswered.append(2 * len(values))
            while len(unanswered) >= IN_FLIGHT:
                line.read_statuses(unanswered.popleft())
        line.read_statuses(sum(unanswered))

    if missing:
        with relay.errors():
            if not directly(relay.redis, over_sockets):
                for values in requests():
                    _send_by_commands(relay, values)
    return sum(sizes.values())


def _send_by_commands(relay: Relay, values: Iterable[tuple[str, Buffer]]) -> None:
    """The same where there is no socket to write to."""
    with relay.redis.pipeline(transaction=False) as pipe:
        for key, value in values:
            pipe.set(key, bytes(value), ex=UNFINISHED_TTL, nx=True)
            pipe.expire(key, UNFINISHED_TTL, gt=True)
        pipe.execute()


@dataclass(frozen=True, slots=True)
class _Source:
    """Where an array is: its name, the key of its manifest, those of its chunks."""

    digest: str
    manifest: str
    chunk: Callable[[int], str]

    def opened(self, manifest: bytes | None) -> tuple[int, int]:
        """Number of chunks and bytes, as the manifest has them."""
        if manifest is None:
            raise self.missing("the array")
        try:
            count, nbytes = (int(part) for part in text(manifest).split("|"))
        except ValueError:
            raise self.corrupt("has no proper manifest") from None
        return count, nbytes

    def missing(self, what: str) -> ObjectMissing:
        return ObjectMissing(f"{what} {self.digest[:12]}… is not on the server (any more)")

    def corrupt(self, how: str) -> ObjectCorrupt:
        return ObjectCorrupt(f"the array {self.digest[:12]}… on the server {how}")


class Memory:
    """A place in the memory of this process alone."""

    def __init__(self, nbytes: int) -> None:
        # NumPy asks the system for large pages: with small ones, handing out the memory takes longer than filling it.
        self._whole = np.empty(nbytes, dtype=np.uint8).data
        self._at = 0

    def room(self, left: int) -> memoryview:
        return self._whole[self._at : self._at + left]

    def filled(self, count: int) -> None:
        self._at += count

    def verified(self) -> memoryview:
        return self._whole.toreadonly()

    def close(self) -> None:
        pass


class _Arriving:
    """An array of which the chunks come in, one after the other, each behind the one before."""

    def __init__(self, source: _Source, nbytes: int, place_for: PlaceFor | None) -> None:
        self._source = source
        try:
            chosen = place_for(source.digest, nbytes) if place_for is not None else None
            self._place: Place = chosen if chosen is not None else Memory(nbytes)
        except (MemoryError, ValueError) as error:
            raise source.corrupt(f"says to have {nbytes} bytes, for which there is no room here") from error
        self._left = nbytes
        self._hash = Digest()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._place.close()

    def comes(self, length: int | None) -> int:
        """The length of the chunk that comes next."""
        if length is None:
            raise self._source.missing("a part of the array")
        if length > self._left:
            raise self._source.corrupt("is longer than it says")
        self._left -= length
        return length

    def room(self, left: int) -> memoryview:
        """Where the next bytes of a chunk go, of which so many are left."""
        return self._place.room(left)

    def received(self, part: memoryview) -> None:
        """They are there."""
        self._hash.update(part)  # while they are in the processor's cache
        try:
            self._place.filled(len(part))
        except (MemoryError, OSError) as error:
            raise self._source.corrupt("has no room here") from error

    def done(self) -> memoryview:
        """All of it, verified and read-only."""
        if self._left or self._hash.hexdigest() != self._source.digest:
            raise self._source.corrupt("has other bytes than its name says")
        return self._place.verified()


def _fetch(relay: Relay, sources: Sequence[_Source], place_for: PlaceFor | None = None) -> dict[str, memoryview]:
    """Arrays by their chunks. At most IN_FLIGHT are under way: the next array begins while the last one ends."""
    found: dict[str, memoryview] = {}

    def over_sockets(line: Line) -> None:
        left = [source for source in sources if source.digest not in found]
        begun = 0

        def begin_next() -> None:
            nonlocal begun
            if begun < len(left):
                line.send(*command("GET", left[begun].manifest), *command("GET", left[begun].chunk(0)))
                begun += 1

        begin_next()
        for source in left:
            count, nbytes = source.opened(line.read_value())
            with _Arriving(source, nbytes, place_for) as array:
                for i in range(1, count + 1):
                    if i < count:
                        line.send(*command("GET", source.chunk(i)))
                    else:
                        begin_next()
                    line.receive(array.comes(line.read_length()), array.room, array.received)
                found[source.digest] = array.done()

    if sources:
        with relay.errors():
            if not directly(relay.redis, over_sockets):
                for source in sources:
                    found[source.digest] = _fetch_by_commands(relay, source, place_for)
    return found


def _fetch_by_commands(relay: Relay, source: _Source, place_for: PlaceFor | None) -> memoryview:
    """The same where there is no socket to read from."""
    client: Any = relay.redis
    count, nbytes = source.opened(client.get(source.manifest))
    with _Arriving(source, nbytes, place_for) as array:
        for i in range(count):
            part = client.get(source.chunk(i))
            rest = memoryview(part or b"")
            array.comes(None if part is None else len(part))
            while rest:
                target = array.room(len(rest))
                target[:], rest = rest[: len(target)], rest[len(target) :]
                array.received(target)
        return array.done()
