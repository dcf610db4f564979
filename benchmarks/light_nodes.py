"""``python -m benchmarks.light_nodes URL``: any number of nodes in one process, without a worker.

They register and beat as SuperNodes do, and answer messages by the same steps (claim, commit); what they leave out is
everything around: queue, worker, isolation. Told over a pipe what to do next.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import numpy as np

from fedq.apps import ArrayRecord, MetricRecord, RecordDict
from fedq.apps.wire import decode, encode
from fedq.node.pace import paced
from fedq.relay import nodes
from fedq.relay.claims import Claim, Commit, claim, commit, new_token
from fedq.relay.connection import Relay
from fedq.relay.texts import text

STAY = 3600.0
"""Seconds that a node counts as online after it was registered, also while this process does something else."""

HOLDER = "supernode-0123456789ab|bench|1"


def names(count: int) -> list[str]:
    """The nodes' names."""
    return [f"light-{number:05d}" for number in range(count)]


def register(relay: Relay, count: int) -> dict[str, Any]:
    """Make so many nodes known and online."""
    for number, name in enumerate(names(count)):
        labels = {"site": f"site-{number % 20}", "partition": str(number)}
        details = {"fedq": "0.1.0", "python": "3.11.2", "numpy": "2.0.0", "cpus": 8}
        nodes.register(relay, name, nodes.NodeInfo(labels=labels, host=f"host-{number}", pid=number, details=details))
        nodes.beat(relay, name, ttl=STAY)
    return {"registered": count}


def beat(relay: Relay, count: int, seconds: float) -> dict[str, Any]:
    """Beat for all of them in turn, as often as they would by themselves, if this process is fast enough for that.

    As a SuperNode does, each extends its lease and its heartbeat, both in one step.
    """
    known = names(count)
    pause = paced(nodes.HEARTBEAT, count) / count
    began = time.monotonic()
    done = 0
    while (now := time.monotonic()) < began + seconds:
        if now < began + done * pause:
            time.sleep(min(0.01, began + done * pause - now))
            continue
        name = known[done % count]
        nodes.take_dispatcher(relay, name, HOLDER, alive=STAY)
        done += 1
    return {"beats": done, "seconds": time.monotonic() - began}


def answer(relay: Relay, chosen: list[str], messages: int) -> dict[str, Any]:
    """Answer so many messages to the chosen nodes: add one, commit."""
    inboxes = {relay.keys.inbox(name): name for name in chosen}
    cursors = dict.fromkeys(inboxes, "0")
    done = 0
    while done < messages:
        with relay.errors():
            raw: Any = relay.redis.xread(dict(cursors), block=relay.block(1000))  # type: ignore[arg-type]
        for stream, entries in raw or ():
            for entry, fields in entries:
                inbox = text(stream)
                cursors[inbox] = text(entry)
                if fields[b"kind"] == b"message":
                    reply(relay, inboxes[inbox], int(fields[b"run"]), text(entry), text(fields[b"id"]))
                    done += 1
    return {"answered": done}


def reply(relay: Relay, node: str, run: int, entry: str, message: str) -> None:
    """Claim a message, add one to its arrays, commit."""
    token = new_token()
    claimed = claim(relay, node, run, entry, message, token)
    if claimed.outcome is not Claim.OK or claimed.instruction is None:
        raise RuntimeError(f"{node}: the claim of {message} was {claimed.outcome}")
    model = decode(claimed.instruction.body).array_records["arrays"]
    arrays = ArrayRecord([array.numpy() + np.float32(1) for array in model.values()])
    content = RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1, "pid": os.getpid()})})
    state = encode(RecordDict({"counter": MetricRecord({"calls": 1})}))
    done = commit(relay, node, run, entry, message, token, ok=True, body=encode(content).data, context=(state.data, ()))
    if done.outcome is not Commit.COMMITTED:
        raise RuntimeError(f"{node}: the commit of {message} was {done.outcome}")


def main() -> None:
    """Serve until stdin closes."""
    actions: dict[str, Any] = {"register": register, "beat": beat, "answer": answer}
    with Relay.connect(sys.argv[1], client_name="light-nodes") as relay:
        for line in sys.stdin:
            request = json.loads(line)
            print(json.dumps(actions[request.pop("do")](relay, **request)), flush=True)


if __name__ == "__main__":
    main()
