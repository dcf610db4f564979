"""The cache on disk gives the bytes of a digest, or nothing."""

from __future__ import annotations

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


def test_the_files_are_listed_once_for_many_that_are_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = []
    really = ObjectCache._files
    monkeypatch.setattr(ObjectCache, "_files", lambda cache: listed.append(1) or really(cache))

    for i in range(160):
        data = i.to_bytes(2, "big") * 50
        ObjectCache(tmp_path / "arrays", limit=100 * 100).put({named(data): data})

    assert sum(path.stat().st_size for path in (tmp_path / "arrays").rglob("??/*")) <= 100 * 100
    assert len(listed) <= 160 // 4


def test_a_smaller_limit_holds_as_soon_as_something_is_added(tmp_path: Path) -> None:
    arrays = [bytes([i]) * 400 for i in range(20)]
    for data in arrays[:-1]:
        ObjectCache(tmp_path / "arrays", limit=100_000).put({named(data): data})

    ObjectCache(tmp_path / "arrays", limit=1000).put({named(arrays[-1]): arrays[-1]})

    assert sum(path.stat().st_size for path in (tmp_path / "arrays").rglob("??/*")) <= 1000


@pytest.mark.parametrize("reason", [errno.EMFILE, errno.EACCES])
def test_a_file_that_cannot_be_opened_for_a_reason_of_ours_is_a_miss_and_stays(
    cache: ObjectCache, monkeypatch: pytest.MonkeyPatch, reason: int
) -> None:
    data = b"weights" * 10
    cache.put({named(data): data})

    def fail(*of: object) -> None:
        raise OSError(reason, os.strerror(reason))

    with monkeypatch.context() as patched:
        patched.setattr("builtins.open", fail)
        assert cache.get(named(data)) is None

    assert cache.get(named(data)) is not None


@pytest.mark.parametrize("written", [b"", b"nonsense", b"-5", b"9" * 30, b"9" * 30 + b"|1000", b"900|900"])
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
