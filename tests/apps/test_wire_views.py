"""Decoding copies nothing, and fetches what stands beside the data only when it is wanted."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator, Mapping

import numpy as np
import pytest

from fedq.apps import Array, ArrayRecord, RecordDict, WireError, wire


class Fetching(Mapping[str, memoryview]):
    """Blobs that note which of them were asked for."""

    def __init__(self, blobs: Mapping[str, memoryview]) -> None:
        self.blobs = blobs
        self.fetched: list[str] = []

    def __getitem__(self, digest: str) -> memoryview:
        self.fetched.append(digest)
        return self.blobs[digest]

    def __iter__(self) -> Iterator[str]:
        return iter(self.blobs)

    def __len__(self) -> int:
        return len(self.blobs)


def test_decoded_arrays_are_aligned_read_only_views_of_the_data() -> None:
    arrays = [np.ones(n, dtype) for n, dtype in ((3, np.int8), (5, np.float64), (2, np.longdouble), (1000, np.float32))]
    data = wire.encode(RecordDict({"a": ArrayRecord(arrays)})).data
    memory = np.frombuffer(data, np.uint8)
    for view in wire.decode(data).array_records["a"].to_numpy_ndarrays(copy=False):
        assert np.shares_memory(view, memory)
        assert view.flags.aligned
        assert not view.flags.writeable
        assert (view.ctypes.data - memory.ctypes.data) % 64 == 0


def test_decoded_arrays_are_read_only_also_where_the_memory_is_not() -> None:
    data = bytearray(wire.encode(RecordDict({"a": ArrayRecord([np.ones(4)])})).data)
    (view,) = wire.decode(data).array_records["a"].to_numpy_ndarrays(copy=False)
    assert np.shares_memory(view, np.frombuffer(data, np.uint8))
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 2


def test_blobs_share_the_memory_of_the_record_on_both_ways() -> None:
    array = Array(np.asfortranarray(np.ones((100, 20))))
    encoded = wire.encode(RecordDict({"a": ArrayRecord({"x": array})}), inline_limit=0)
    (blob,) = encoded.blobs.values()
    assert np.shares_memory(np.frombuffer(blob, np.uint8), array.numpy(copy=False))
    back = wire.decode(encoded.data, encoded.blobs).array_records["a"]["x"]
    assert np.shares_memory(back.numpy(copy=False), array.numpy(copy=False))


def test_a_large_array_is_decoded_without_allocating_its_size() -> None:
    data = wire.encode(RecordDict({"a": ArrayRecord([np.ones(1 << 20)])})).data
    tracemalloc.start()
    try:
        wire.decode(data)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_lazy_decoding_fetches_each_array_at_its_first_use_and_only_once() -> None:
    encoded = wire.encode(RecordDict({"a": ArrayRecord([np.ones(100), np.zeros(200)])}), inline_limit=0)
    blobs = Fetching(encoded.blobs)
    record = wire.decode(encoded.data, blobs, lazy=True).array_records["a"]
    assert [(a.dtype, a.shape, a.stype) for a in record.values()] == [
        ("float64", (100,), "numpy.ndarray"),
        ("float64", (200,), "numpy.ndarray"),
    ]
    assert blobs.fetched == []
    assert record["1"].numpy().sum() == 0
    assert len(blobs.fetched) == 1
    assert record["1"].numpy().sum() == 0
    assert len(blobs.fetched) == 1
    assert record["0"].numpy().sum() == 100
    assert len(blobs.fetched) == 2


def test_the_size_of_a_lazy_array_is_known_without_fetching_it() -> None:
    encoded = wire.encode(RecordDict({"a": ArrayRecord([np.ones(100)])}), inline_limit=0)
    blobs = Fetching(encoded.blobs)
    records = wire.decode(encoded.data, blobs, lazy=True)
    assert records.array_records["a"]["0"].nbytes == 800
    assert records.count_bytes() == 802
    assert blobs.fetched == []


def test_an_array_that_is_missing_is_a_wire_error_that_names_it_at_once_or_at_its_first_use() -> None:
    encoded = wire.encode(RecordDict({"a": ArrayRecord({"weights": Array(np.ones(100))})}), inline_limit=0)
    (digest,) = encoded.blobs
    for blobs in (None, {}):
        with pytest.raises(WireError, match=f"'weights'.*{digest}"):
            wire.decode(encoded.data, blobs)
    record = wire.decode(encoded.data, {}, lazy=True).array_records["a"]
    with pytest.raises(WireError, match="'weights'"):
        record["weights"].numpy()


def test_a_blob_of_another_size_or_content_is_a_wire_error() -> None:
    encoded = wire.encode(RecordDict({"a": ArrayRecord({"weights": Array(np.ones(100))})}), inline_limit=0)
    (digest,) = encoded.blobs
    for wrong in (b"", bytes(799), bytes(801)):
        with pytest.raises(WireError, match="800 were announced"):
            wire.decode(encoded.data, {digest: wrong})
    with pytest.raises(WireError, match="digest"):
        wire.decode(encoded.data, {digest: bytes(800)}, verify=True)


def test_an_array_is_hashed_once_however_often_it_is_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    from fedq.apps.digest import digest_of
    from fedq.apps.wire import records as module

    hashed: list[int] = []

    def counting(content: memoryview) -> str:
        hashed.append(len(content))
        return digest_of(content)

    monkeypatch.setattr(module, "digest_of", counting)
    content = RecordDict({"a": ArrayRecord([np.ones(100), np.ones(2)])})
    for _ in range(3):
        encoded = wire.encode(content, inline_limit=100)
    assert hashed == [800]
    verified = wire.decode(encoded.data, encoded.blobs, verify=True)
    for _ in range(3):
        assert wire.encode(verified, inline_limit=100) == encoded
    assert hashed == [800, 800]


def test_content_that_was_not_verified_is_never_passed_on_under_the_digest_it_came_with() -> None:
    content = RecordDict({"a": ArrayRecord([np.ones(100)])})
    encoded = wire.encode(content, inline_limit=0)
    (digest,) = encoded.blobs
    forged = wire.decode(encoded.data, {digest: bytes(800)})
    assert digest not in wire.encode(forged, inline_limit=0).blobs
