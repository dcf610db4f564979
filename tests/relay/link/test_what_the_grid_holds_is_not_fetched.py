"""An array that the ServerApp has in memory does not cross the wire again, and is what its name says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from fedq.apps import Array, ArrayRecord, Context, Message, RecordDict
from fedq.apps.wire import encode
from fedq.relay import objects
from fedq.relay.connection import Relay
from fedq.relay.held import HeldArrays
from tests.relay.link.conftest import Setting

BIG = 100_000


def change_the_last(message: Message, context: Context) -> RecordDict:
    model = message.content.array_records["arrays"]
    *frozen, last = model
    changed = Array(model[last].numpy() + (1.0 if message.metadata.dst_node_id == "a" else 2.0))
    return RecordDict({"arrays": ArrayRecord({**{name: model[name] for name in frozen}, last: changed})})


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The digests that were asked for."""
    asked: list[str] = []
    real = objects._fetch

    def fetch(relay: Relay, sources: Sequence[Any], *more: Any) -> dict[str, memoryview]:
        asked.extend(source.digest for source in sources)
        return real(relay, sources, *more)

    monkeypatch.setattr(objects, "_fetch", fetch)
    return asked


def test_arrays_that_come_back_as_they_were_sent_are_not_fetched(setting: Setting, fetched: list[str]) -> None:
    for name in ("a", "b"):
        setting.node(name, change_the_last)
    grid = setting.grid()
    model = ArrayRecord({"frozen": Array(np.arange(BIG, dtype=float)), "free": Array(np.zeros(BIG))})
    replies = list(grid.stream([Message(RecordDict({"arrays": model}), name, "train") for name in "ab"], timeout=20))
    grid_asked = {array._digest for reply in replies for array in reply.content.array_records["arrays"].values()}
    frozen = model["frozen"]._digest
    assert frozen in grid_asked
    # The nodes of this test share the process, and each fetches the model; the Grid fetches what changed.
    assert fetched.count(str(frozen)) == 2
    for reply in replies:
        got = reply.content.array_records["arrays"]
        np.testing.assert_array_equal(got["frozen"].numpy(), np.arange(BIG, dtype=float))
        step = 1.0 if reply.metadata.src_node_id == "a" else 2.0
        np.testing.assert_array_equal(got["free"].numpy(), np.full(BIG, step))


def test_what_nobody_holds_is_forgotten() -> None:
    held = HeldArrays()
    record = RecordDict({"arrays": ArrayRecord([np.ones(BIG)])})
    (digest,) = encode(record, inline_limit=10).blobs
    held.remember(record)
    assert bytes(held.get([digest])[digest]) == np.ones(BIG).tobytes()
    del record
    assert held.get([digest]) == {}


def test_an_array_that_was_changed_behind_its_back_is_not_taken_for_what_it_was() -> None:
    held = HeldArrays()
    whole = np.ones((2, BIG))
    record = RecordDict({"arrays": ArrayRecord({"w": Array.from_numpy_ndarray(whole[0], copy=False)})})
    (digest,) = encode(record, inline_limit=10).blobs
    held.remember(record)
    whole[0, 5] = 2.0
    assert held.get([digest]) == {}


@pytest.mark.parametrize("order", ["C", "F"])
def test_memory_order_is_part_of_the_bytes(order: Any) -> None:
    held = HeldArrays()
    array = np.asarray(np.arange(6 * BIG).reshape(BIG, 6), order=order)
    record = RecordDict({"arrays": ArrayRecord([array])})
    ((digest, blob),) = encode(record, inline_limit=10).blobs.items()
    held.remember(record)
    assert held.get([digest])[digest] == blob
