"""What an ended run leaves is deleted: in batches, and in any number of tries."""

from __future__ import annotations

from typing import Any

from fedq.relay.connection import Relay
from fedq.relay.events import MAX_EVENTS
from fedq.relay.keys import GROUP
from fedq.relay.runs import run_nodes
from fedq.relay.texts import text

BATCH = 200
"""Answers, log lines or objects that one step deletes."""


def clean_run(relay: Relay, run: int, *, everything: bool = False) -> bool:
    """Delete what an ended run left, except status, config, result, events and final arrays.

    Can be interrupted and repeated at any point. ``everything`` deletes those too. False while the run lives.
    """
    keys = relay.keys
    for node in run_nodes(relay, run):
        names = [keys.run(run), keys.inbox(node), keys.claims(node), keys.order(node, run), keys.replies(node, run)]
        names += [keys.node_ctx(node, run), keys.node_objs(node, run), keys.log(node, run), keys.events(run)]
        args = [run, keys.node(node), GROUP, keys.node_alive(node), BATCH, MAX_EVENTS]
        if not _until_done(relay, "clean_node", names, args):
            return False
    names = [keys.run(run), keys.run_objs(run), keys.sent(run), keys.deadlines(run), keys.journal(run)]
    names += [keys.run_nodes(run), keys.run_ctx(run), keys.alive_runs()]
    return _until_done(relay, "clean_run", names, [run, keys.obj(""), BATCH, int(everything)])


def _until_done(relay: Relay, step: str, names: list[str], args: list[Any]) -> bool:
    while True:
        outcome = text(relay.call(step, names, args)[0])
        if outcome != "MORE":
            return outcome == "DONE"


def remove_run(relay: Relay, run: int) -> bool:
    """Forget an ended run altogether. False while it lives."""
    if not clean_run(relay, run, everything=True):
        return False
    keys = relay.keys
    with relay.errors(), relay.redis.pipeline(transaction=True) as pipe:
        pipe.zrem(keys.runs(), run)
        pipe.unlink(keys.run(run), keys.events(run), keys.run_objs(run))
        pipe.execute()
    return True
