"""What every message needs, done a few times before the first: forked processes then find it done.

A process that is forked for a message would otherwise be the first to run each function, to ask which types a value
belongs to, to look up a dtype; and it would copy the pages on which the interpreter notes what it has learnt.
"""

from __future__ import annotations

import numpy as np

from fedq.apps.arrayrecord import ArrayRecord
from fedq.apps.client_app import ClientApp
from fedq.apps.configrecord import ConfigRecord
from fedq.apps.context import Context
from fedq.apps.message import Message
from fedq.apps.metricrecord import MetricRecord
from fedq.apps.recorddict import RecordDict
from fedq.apps.wire import decode, decode_user_config, encode, encode_user_config
from fedq.node.execution import make_request
from fedq.relay import objects, scripts
from fedq.relay.messages import parse_entry
from fedq.relay.runs import parse_app_info

TIMES = 20
"""The interpreter specialises code that it has run more often than eight times."""


def rehearse() -> None:
    """Decode a message, have an app answer it, encode the answer; no server takes part. Some 20 ms."""
    scripts.warm()
    app = ClientApp()

    @app.train()
    def answer(message: Message, context: Context) -> Message:
        content = message.content
        arrays = {name: array.numpy() for name, array in content.array_records["arrays"].items()}
        reply = RecordDict(
            {
                "arrays": ArrayRecord({name: content.array_records["arrays"][name] for name in arrays}),
                "metrics": MetricRecord({"num-examples": 1, "loss": 0.5}),
            }
        )
        return Message(reply, reply_to=message)

    config = encode_user_config({"number": 1, "text": "a"})
    body = encode(
        RecordDict(
            {
                "arrays": ArrayRecord([np.zeros((2, 2), np.float32), np.zeros(3, np.float64)]),
                "config": ConfigRecord({"server-round": 1, "rate": 0.1}),
            }
        ),
        inline_limit=objects.INLINE_LIMIT,
    ).data
    entry: dict[str, str | bytes] = {
        "kind": "message", "id": "0" * 32, "run": "1", "seq": "1", "type": "train", "group": "1", "created": "1000",
        "deadline": "2000", "offline": "wait", "body": body, "objs": "", "bytes": "1",
    }  # fmt: skip
    flat = [item.encode() if isinstance(item, str) else item for pair in entry.items() for item in pair]
    run = [b"", config, b"", b"0", b"", b"", b"{}", b"0", b"0", b""]
    for _ in range(TIMES):
        info = parse_app_info(1, run)
        instruction = parse_entry("1-1", flat)
        state = RecordDict()
        context = Context(
            run_id=1, node_id="node", node_config={}, state=state, run_config=decode_user_config(info.config)
        )
        replied = app(make_request(instruction, decode(instruction.body, {}), "node"), context)
        encode(replied.content, inline_limit=objects.INLINE_LIMIT)
        encode(state, inline_limit=objects.INLINE_LIMIT)


__all__ = ["rehearse"]
