"""A node receives large arrays into the files of its cache, whole ones only, or else in memory."""

from __future__ import annotations

import ctypes
import errno
import faulthandler
import gc
import mmap
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fedq.apps.digest import digest_of
from fedq.node import cache as module
from fedq.node.cache import MAPPED_AT_ONCE, MAPPED_FROM, ObjectCache
from fedq.node.virtualjobs import RecentArrays
from fedq.relay import objects
from fedq.relay.connection import Relay
from fedq.relay.errors import ObjectCorrupt
from fedq.relay.objects import Place
from tests.relay.test_large_arrays import Between

LARGE = np.random.default_rng(1).bytes(objects.CHUNK + 5000)
SMALL = np.random.default_rng(2).bytes(MAPPED_FROM - 1)
BLOBS = {digest_of(data): data for data in (LARGE, SMALL)}


def _nameless(folder: Path) -> bool:
    """Whether the folder's file system has files without a name."""
    folder.mkdir(exist_ok=True)
    place = ObjectCache(folder).place(digest_of(LARGE), len(LARGE))
    if place is not None:
        place.close()
    return place is not None


@pytest.fixture
def cache(tmp_path: Path) -> ObjectCache:
    if not _nameless(tmp_path / "probe"):
        pytest.skip("this file system has no files without a name")
    return ObjectCache(tmp_path / "arrays", limit=20 * len(LARGE))


@pytest.fixture
def sent(relay: Relay) -> Iterator[Relay]:
    objects.upload_bundle(relay, BLOBS)
    yield relay
    for digest in BLOBS:
        for name in relay.redis.scan_iter(f"{relay.keys.obj(digest)}*", count=1000):
            relay.redis.delete(name)


def kept(cache: ObjectCache) -> list[Path]:
    """The arrays on disk."""
    return [path for path in cache.folder.rglob("??/*") if path.is_file()]


def receive(place: Place | None, data: bytes) -> None:
    """As `fedq.relay.objects` does it, in parts of any length."""
    assert place is not None
    at = 0
    while at < len(data):
        room = place.room(len(data) - at)
        count = min(len(room), 100_003)
        room[:count] = data[at : at + count]
        place.filled(count)
        at += count


def received(cache: ObjectCache, data: bytes) -> memoryview:
    """All of an array, from the cache's place for it."""
    place = cache.place(digest_of(data), len(data))
    receive(place, data)
    assert place is not None
    view = place.verified()
    place.close()
    return view


def test_a_large_array_is_there_and_in_the_cache_and_a_small_one_is_there(sent: Relay, cache: ObjectCache) -> None:
    got = objects.fetch_shared(sent, BLOBS, cache.place)

    assert {digest: bytes(view) for digest, view in got.items()} == BLOBS
    assert all(view.readonly for view in got.values())
    assert [path.name for path in kept(cache)] == [digest_of(LARGE)]
    found = cache.get(digest_of(LARGE), len(LARGE))
    assert found is not None
    assert bytes(found) == LARGE


def test_whoever_has_the_array_cannot_change_the_file(cache: ObjectCache) -> None:
    array = np.frombuffer(received(cache, LARGE), dtype=np.uint8)

    child = os.fork()
    if child == 0:
        faulthandler.disable()
        ctypes.memset(array.ctypes.data, 0, 1)  # what a library does that does not ask
        os._exit(0)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) < 0
    found = cache.get(digest_of(LARGE))
    assert found is not None
    assert bytes(found) == LARGE


def test_an_array_with_other_bytes_than_its_name_says_leaves_nothing(sent: Relay, cache: ObjectCache) -> None:
    sent.redis.setrange(sent.keys.obj_chunk(digest_of(LARGE), 0), 100, b"something else")
    before = len(os.listdir("/proc/self/fd"))

    with pytest.raises(ObjectCorrupt):
        objects.fetch_shared(sent, [digest_of(LARGE)], cache.place)

    gc.collect()
    assert kept(cache) == []
    assert len(os.listdir("/proc/self/fd")) <= before  # its connection is closed as well


@pytest.mark.parametrize("after", [MAPPED_FROM + 10_000, objects.CHUNK + 100_000])
def test_a_connection_that_breaks_half_way_leaves_the_array_once_and_no_file_open(
    sent: Relay, cache: ObjectCache, after: int
) -> None:
    more = np.random.default_rng(3).bytes(objects.CHUNK)
    objects.upload_bundle(sent, {digest_of(more): more})
    wanted = {**BLOBS, digest_of(more): more}
    before = len(os.listdir("/proc/self/fd"))
    with Between(sent.url) as between:
        relay = Relay(f"redis://127.0.0.1:{between.port}")
        relay.redis.ping()
        between.cut("from the server", after)
        got = objects.fetch_shared(relay, wanted, cache.place)
        relay.close()
        assert between.cuts == 1
    assert {digest: bytes(view) for digest, view in got.items()} == wanted
    assert sorted(path.name for path in kept(cache)) == sorted([digest_of(LARGE), digest_of(more)])
    del got
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before
    for name in sent.redis.scan_iter(f"{sent.keys.obj(digest_of(more))}*", count=1000):
        sent.redis.delete(name)


def test_an_array_that_never_came_to_its_end_leaves_nothing(cache: ObjectCache) -> None:
    place = cache.place(digest_of(LARGE), len(LARGE))
    assert place is not None
    receive(place, LARGE[: MAPPED_FROM + 50])

    place.close()

    assert kept(cache) == []


def test_two_that_receive_the_same_array_both_have_it(cache: ObjectCache) -> None:
    places = [cache.place(digest_of(LARGE), len(LARGE)) for _ in range(2)]
    for place in places:
        assert place is not None
        receive(place, LARGE)

        assert bytes(place.verified()) == LARGE
        place.close()

    assert len(kept(cache)) == 1


@pytest.mark.parametrize("refused", ["link", "open", "write"])
def test_where_a_file_is_refused_the_array_is_received_all_the_same(
    sent: Relay, cache: ObjectCache, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    def refuse(*of: object, **more: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    objects.fetch_shared(sent, [digest_of(SMALL)])  # with a connection that is there afterwards
    before = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as system:
        system.setattr(os, refused, refuse)
        got = objects.fetch_shared(sent, BLOBS, cache.place)

    assert {digest: bytes(view) for digest, view in got.items()} == BLOBS
    cache.put(got)
    assert sorted(path.name for path in kept(cache)) == sorted(BLOBS)
    del got
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_disk_that_is_full_in_the_middle_of_an_array_costs_its_place_in_the_cache_and_nothing_else(
    cache: ObjectCache,
) -> None:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (MAPPED_FROM + 1000, MAPPED_FROM + 1000))
            view = received(cache, LARGE)
            status = 0 if bytes(view) == LARGE and view.readonly else 2
        finally:
            os._exit(status)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert kept(cache) == []


def test_where_the_file_cannot_be_mapped_the_array_is_read_into_memory(
    cache: ObjectCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*of: object, **more: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", refuse)
    view = received(cache, LARGE)

    assert bytes(view) == LARGE
    assert view.readonly
    assert [path.read_bytes() for path in kept(cache)] == [LARGE]


def test_arrays_in_use_take_a_bounded_number_of_descriptors_and_of_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAPPED_FROM", 100)
    many = ObjectCache(tmp_path / "many")
    if not _nameless(tmp_path / "probe"):
        pytest.skip("this file system has no files without a name")
    in_use = [received(many, i.to_bytes(2, "big") * 100) for i in range(MAPPED_AT_ONCE)]
    assert many.place(digest_of(b"one more"), 200) is None
    assert many.get(digest_of((0).to_bytes(2, "big") * 100)) is not None

    del in_use
    gc.collect()
    assert many.place(digest_of(b"one more"), 200) is not None

    few = ObjectCache(tmp_path / "few", limit=500)
    in_use = [received(few, i.to_bytes(2, "big") * 100) for i in range(2)]
    assert few.place(digest_of(b"one more"), 200) is None
    del in_use


def test_what_killed_processes_received_is_trimmed_like_anything_else(cache: ObjectCache) -> None:
    limit = 3 * len(LARGE)
    for number in range(12):
        child = os.fork()
        if child == 0:
            own = ObjectCache(cache.folder, limit=limit)
            own.make_room([len(LARGE)])
            received(own, bytes([number]) + LARGE[1:])
            os._exit(0)  # before anything else happens, as one that is killed
        assert os.waitpid(child, 0)[1] == 0

    ObjectCache(cache.folder, limit=limit).make_room([len(LARGE)])

    assert 0 < sum(path.stat().st_size for path in kept(cache)) <= limit


def test_virtual_nodes_receive_in_memory(sent: Relay) -> None:
    recent = RecentArrays()

    got = objects.fetch_shared(sent, BLOBS, recent.place)
    recent.make_room(len(data) for data in BLOBS.values())
    recent.put(got)

    assert {digest: bytes(view) for digest, view in recent.get_many({d: len(b) for d, b in BLOBS.items()}).items()} == (
        BLOBS
    )
