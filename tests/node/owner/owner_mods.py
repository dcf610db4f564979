"""Mods as the owner of some data would write them."""

from __future__ import annotations

from fedq.apps import Context, Message, MetricRecord
from fedq.apps.mod import ClientAppCallable, Mod


def marked(word: str) -> Mod:
    """Adds a metric of this name to each reply."""

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        reply = call_next(message, context)
        if not reply.has_error():
            reply.content["owner"] = MetricRecord({word: 1 + len(reply.content.get("owner", {}))})
        return reply

    return mod


def broken(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Fails, and quotes what it should not."""
    call_next(message, context)
    raise KeyError("the name of a patient")
