"""What every message needs, done a few times where processes are forked for them: they then find it done.

A process that is forked for a message would otherwise be the first to run each function, to ask which types a value
belongs to, to look up a dtype; and it would copy the pages on which the interpreter notes what it has learnt.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from fedq.apps.arrayrecord import ArrayRecord
from fedq.apps.client_app import ClientApp
from fedq.apps.configrecord import ConfigRecord
from fedq.apps.context import Context
from fedq.apps.digest import digest_of
from fedq.apps.message import Message
from fedq.apps.metricrecord import MetricRecord
from fedq.apps.recorddict import RecordDict
from fedq.apps.wire import encode, encode_user_config
from fedq.node.bundle import AppCache
from fedq.node.cache import ArrayCache
from fedq.node.settings import NodeSettings
from fedq.node.trust import TrustPolicy
from fedq.relay import bundles, objects, scripts
from fedq.relay.claims import Claim, Commit
from fedq.relay.jobs.execution import execute
from fedq.relay.jobs.frames import pair
from fedq.relay.jobs.work import bind_parent

TIMES = 12
"""The interpreter specialises code that it has run more often than eight times."""
NOWHERE = "unix:///nonexistent"
"""The address of no server: what should not be there is noticed at once."""
LABELS = {"site": "rehearsal"}


class _Held(ArrayCache):
    """A cache that leaves no file behind when this process is killed."""

    def __init__(self, data: bytes) -> None:
        self._data = {digest_of(data): data}

    def get(self, digest: str, nbytes: int | None = None) -> memoryview | None:
        data = self._data.get(digest)
        return None if data is None else memoryview(data)

    def put(self, blobs: Mapping[str, bytes | bytearray | memoryview]) -> None:
        pass


def rehearse(settings: NodeSettings, work_of: Callable[[NodeSettings], Any]) -> Iterator[dict[str, Any]]:
    """Execute messages as a forked process does, for an app that returns its arrays: one at each step, about 1 ms.

    No server takes part, nor do the node's cache and the mods that its owner imposes. Yields the outcomes.
    """
    scripts.warm()
    work = work_of(
        replace(settings, redis_url=NOWHERE, mods=(), labels=LABELS, trust=TrustPolicy(), virtual=0, time_limit=None)
    )
    bundle = bundles.pack_object(_app()).data
    claimed = _claimed(bundle)
    work.cache = _Held(bundle)
    for _ in range(TIMES):
        work.apps = AppCache(settings.cache_folder, work.cache)  # which has loaded nothing yet
        yield _executed(work, settings.name, claimed)


def _executed(work: Any, node: str, claimed: list[Any]) -> dict[str, Any]:
    errand = {
        "node": node, "run": 1, "entry": "1-1", "message": "0" * 32, "token": "0" * 16, "type": "train", "group": "1",
        "worker": "",
    }  # fmt: skip
    ours, theirs = pair()
    try:
        ours.send({"ahead": claimed})
        ours.send({"answer": Commit.COMMITTED.value})
        execute(work, work.rebuild({"errand": errand, "time_limit": None}), theirs, ahead=True)
        reports = ours.receive()
    finally:
        bind_parent(None)
        ours.close()
        theirs.close()
    match reports:
        case [{"ask": {"ok": True, "context": [*_]}}, {"outcome": {"status": "committed"} as outcome}]:
            return dict(outcome)
    raise RuntimeError(f"a message that was rehearsed came to {reports}")


def _app() -> ClientApp:
    app = ClientApp()

    @app.train()
    def answer(message: Message, context: Context) -> Message:
        arrays = message.content.array_records["arrays"]
        context.state["counter"] = MetricRecord({"calls": 2})
        reply = RecordDict(
            {
                "arrays": ArrayRecord(arrays.to_numpy_ndarrays()),
                "metrics": MetricRecord({"num-examples": 1, "loss": 0.5}),
            }
        )
        return Message(reply, reply_to=message)

    return app


def _claimed(bundle: bytes) -> list[Any]:
    """The answer to a claim, in the order of the step."""
    body = encode(
        RecordDict(
            {
                "arrays": ArrayRecord([np.zeros((2, 2), np.float32), np.zeros(3, np.float64)]),
                "config": ConfigRecord({"server-round": 1, "rate": 0.1}),
            }
        ),
        inline_limit=objects.INLINE_LIMIT,
    ).data
    state = encode(RecordDict({"counter": MetricRecord({"calls": 1})}), inline_limit=objects.INLINE_LIMIT).data
    entry: dict[str, str | bytes] = {
        "kind": "message", "id": "0" * 32, "run": "1", "seq": "1", "type": "train", "group": "1", "created": "1000",
        "deadline": "2000", "offline": "wait", "body": body, "objs": "", "bytes": "1",
    }  # fmt: skip
    flat = [item.encode() if isinstance(item, str) else item for pair in entry.items() for item in pair]
    config = encode_user_config({"number": 1, "text": "a"})
    digest, size, kind = digest_of(bundle).encode(), str(len(bundle)).encode(), bundles.OBJECT.encode()
    run = [b"", config, digest, size, kind, b"", json.dumps(LABELS).encode(), b"0", b"0", b""]
    return [Claim.OK.value.encode(), 1, flat, [b"1-1", [b"data", state]], run, b"1000"]


__all__ = ["rehearse"]
