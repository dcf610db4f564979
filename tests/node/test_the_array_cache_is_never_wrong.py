"""The cache on disk gives the bytes of a digest, or nothing."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

import pytest

from fedq.apps.digest import digest_of
from fedq.node.cache import ObjectCache


def named(data: bytes) -> str:
    return digest_of(data)


def file_of(cache: ObjectCache, digest: str) -> Path:
    return cache.folder / digest[:2] / digest


@pytest.fixture
def cache(tmp_path: Path) -> ObjectCache:
    return ObjectCache(tmp_path / "arrays", limit=1000)


def test_what_was_put_is_found_read_only(cache: ObjectCache) -> None:
    data = b"weights" * 10
    cache.put({named(data): data})

    view = cache.get(named(data), len(data))

    assert view is not None
    assert bytes(view) == data
    assert view.readonly


def test_what_was_never_put_is_a_miss(cache: ObjectCache) -> None:
    assert cache.get(named(b"x")) is None
    assert cache.get("../../etc/passwd") is None


@pytest.mark.parametrize("damage", [b"", b"weigh", b"WEIGHTS!"])
def test_a_damaged_file_is_a_miss_and_goes(cache: ObjectCache, damage: bytes) -> None:
    data = b"weights!"
    digest = named(data)
    cache.put({digest: data})
    file_of(cache, digest).write_bytes(damage)

    assert cache.get(digest, len(data)) is None
    assert not file_of(cache, digest).exists()


def test_the_longest_unused_goes_when_the_limit_is_passed(cache: ObjectCache) -> None:
    first, second, third = (bytes([i]) * 400 for i in range(3))
    cache.put({named(first): first})
    cache.put({named(second): second})
    os.utime(file_of(cache, named(first)), (1, 1))
    os.utime(file_of(cache, named(second)), (2, 2))
    assert cache.get(named(first)) is not None  # and is the latest used now

    cache.put({named(third): third})

    assert cache.get(named(first)) is not None
    assert cache.get(named(second)) is None
    assert cache.get(named(third)) is not None


def test_an_array_larger_than_the_limit_is_not_kept(cache: ObjectCache) -> None:
    data = bytes(1001)
    cache.put({named(data): data})

    assert cache.get(named(data)) is None


def test_a_limit_of_zero_keeps_nothing(tmp_path: Path) -> None:
    cache = ObjectCache(tmp_path / "arrays", limit=0)
    cache.put({named(b"x"): b"x"})

    assert cache.get(named(b"x")) is None
    assert not (tmp_path / "arrays").exists()


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    cache = ObjectCache(tmp_path / "file" / "arrays")

    cache.put({named(b"x"): b"x"})

    assert cache.get(named(b"x")) is None


def test_an_array_received_into_its_file_is_found_once_it_is_verified(cache: ObjectCache) -> None:
    data = b"received" * 10
    place = cache.place(named(data), len(data))
    assert place is not None
    place.memory[:] = data
    assert cache.get(named(data)) is None

    view = place.verified()
    place.close()

    assert bytes(view) == data
    assert view.readonly
    found = cache.get(named(data), len(data))
    assert found is not None
    assert bytes(found) == data


def test_an_array_that_was_not_verified_leaves_nothing(cache: ObjectCache) -> None:
    data = b"half of it" * 10
    place = cache.place(named(data), len(data))
    assert place is not None
    place.memory[:50] = data[:50]

    place.close()

    assert [path for path in cache.folder.rglob("*") if path.is_file()] == []


def test_two_that_receive_the_same_array_both_have_it(cache: ObjectCache) -> None:
    data = b"wanted by two" * 10
    places = [cache.place(named(data), len(data)) for _ in range(2)]
    for place in places:
        assert place is not None
        place.memory[:] = data

        assert bytes(place.verified()) == data
        place.close()

    assert cache.get(named(data)) is not None
    assert sum(path.is_file() for path in cache.folder.rglob("*")) == 1


def test_where_a_file_has_no_room_the_array_is_received_in_memory(
    cache: ObjectCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*of: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, "posix_fallocate", full)

    assert cache.place(named(b"x"), 1) is None
    assert cache.place(named(b"y"), cache.limit + 1) is None
    assert cache.place("../../etc/passwd", 1) is None
    assert len(os.listdir("/proc/self/fd")) == before


def test_received_arrays_are_trimmed_like_any_other(cache: ObjectCache) -> None:
    arrays = [bytes([i]) * 400 for i in range(3)]
    for i, data in enumerate(arrays):
        place = cache.place(named(data), len(data))
        assert place is not None
        place.memory[:] = data
        place.verified()
        place.close()
        cache.trim()
        with contextlib.suppress(FileNotFoundError):
            os.utime(file_of(cache, named(data)), (i, i))

    kept = [data for data in arrays if cache.get(named(data)) is not None]

    assert kept == arrays[1:]


def test_the_files_are_listed_once_for_many_that_are_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = []
    really = ObjectCache._files
    monkeypatch.setattr(ObjectCache, "_files", lambda cache: listed.append(1) or really(cache))

    for i in range(160):
        data = i.to_bytes(2, "big") * 50
        ObjectCache(tmp_path / "arrays", limit=100 * 100).put({named(data): data})

    sizes = [path.stat().st_size for path in (tmp_path / "arrays").rglob("*") if path.name != ".lock"]
    assert sum(size for size in sizes if size == 100) <= 100 * 100
    assert len(listed) <= 160 // 4


@pytest.mark.parametrize("written", [b"", b"nonsense", b"-5", b"9" * 30])
def test_nonsense_in_the_note_of_the_room_is_no_error(cache: ObjectCache, written: bytes) -> None:
    cache.folder.mkdir(parents=True)
    (cache.folder / ".lock").write_bytes(written)

    for i in range(5):
        data = bytes([i]) * 400
        cache.put({named(data): data})

    assert cache.get(named(bytes([4]) * 400)) is not None
    assert sum(path.stat().st_size for path in cache.folder.rglob("??/*")) <= cache.limit


def test_an_unfinished_file_of_a_killed_process_is_trimmed_like_any_other(cache: ObjectCache) -> None:
    data = bytes(600)
    digest = named(data)
    shelf = cache.folder / digest[:2]
    shelf.mkdir(parents=True)
    part = shelf / ".dead.part"
    part.write_bytes(bytes(600))
    os.utime(part, (1, 1))

    cache.put({digest: data})

    assert not part.exists()
    assert cache.get(digest) is not None
