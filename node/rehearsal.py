"""What every message needs, done a few times before the first: forked processes then find it done.

A process that is forked for a message would otherwise be the first to run each function, to ask which types a value
belongs to, to look up a dtype; and it would copy the pages on which the interpreter notes what it has learnt.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cloudpickle
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
from fedq.node.settings import NodeSettings
from fedq.node.trust import TrustPolicy
from fedq.relay import bundles, objects, scripts
from fedq.relay.claims import Claim, Commit
from fedq.relay.jobs.execution import execute
from fedq.relay.jobs.frames import pair
from fedq.relay.jobs.work import bind_parent

logger = logging.getLogger(__name__)

TIMES = 12
"""The interpreter specialises code that it has run more often than eight times."""


def rehearse(settings: NodeSettings, work_of: Callable[[NodeSettings], Any]) -> list[Any]:
    """Execute messages as a forked process does, for an app that returns its arrays. Some 40 ms.

    The server takes no part, nor do the node's cache and the mods that its owner imposes. Returns what was reported.
    """
    try:
        scripts.warm()
        with TemporaryDirectory(prefix="fedq-rehearsal-") as folder:
            unbound = replace(settings, cache_dir=Path(folder), mods=(), labels={}, trust=TrustPolicy(), virtual=0)
            return _executed(unbound, work_of(unbound))
    except OSError as error:  # no place for files: each process learns for itself
        logger.debug("nothing was rehearsed: %s", error)
        return []


def _executed(settings: NodeSettings, work: Any) -> list[Any]:
    bundle = cloudpickle.dumps(_app())
    work.cache.put({digest_of(bundle): bundle})
    errand = {
        "node": settings.name, "run": 1, "entry": "1-1", "message": "0" * 32, "token": "0" * 16, "type": "train",
        "group": "1", "worker": "",
    }  # fmt: skip
    reports = []
    ours, theirs = pair()
    try:
        for _ in range(TIMES):
            work.apps = AppCache(settings.cache_folder, work.cache)  # which has loaded nothing yet
            ours.send({"ahead": _claimed(bundle)})
            ours.send({"answer": Commit.COMMITTED.value})
            execute(work, work.rebuild({"errand": errand, "time_limit": None}), theirs, ahead=True)
            reports += ours.receive()
    finally:
        bind_parent(None)
        ours.close()
        theirs.close()
    return reports


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
        "deadline": "9999999999000", "offline": "wait", "body": body, "objs": "", "bytes": "1",
    }  # fmt: skip
    flat = [item.encode() if isinstance(item, str) else item for pair in entry.items() for item in pair]
    config = encode_user_config({"number": 1, "text": "a"})
    digest, size, kind = digest_of(bundle).encode(), str(len(bundle)).encode(), bundles.OBJECT.encode()
    run = [b"", config, digest, size, kind, b"", b"{}", b"0", b"0", b""]
    return [Claim.OK.value.encode(), 1, flat, [b"1-1", [b"data", state]], run, b"1000"]


__all__ = ["rehearse"]
