"""Mods that log how much a message and its reply carry."""

from __future__ import annotations

import logging
import math

from fedq.apps.context import Context
from fedq.apps.message import Message
from fedq.apps.mod.compose import ClientAppCallable

log = logging.getLogger(__name__)


def message_size_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Log the size of the content of a message and of its reply, in bytes."""
    _log_size("incoming", message)
    reply = call_next(message, context)
    _log_size("outgoing", reply)
    return reply


def arrays_size_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Log how many numbers, and how many bytes, each ArrayRecord of a message and of its reply holds."""
    _log_arrays("incoming", message)
    reply = call_next(message, context)
    _log_arrays("outgoing", reply)
    return reply


parameters_size_mod = arrays_size_mod
"""The name that `arrays_size_mod` had in Flower's older API."""


def _log_size(direction: str, message: Message) -> None:
    if message.has_error():
        log.info("%s message: an error", direction)
        return
    log.info("%s message: %d bytes", direction, sum(record.count_bytes() for record in message.content.values()))


def _log_arrays(direction: str, message: Message) -> None:
    if message.has_error():
        log.info("%s arrays: none, an error", direction)
        return
    total = 0
    for name, record in message.content.array_records.items():
        elements = sum(math.prod(array.shape) for array in record.values())
        total += record.count_bytes()
        log.info("%s arrays %r: %d numbers, %d bytes", direction, name, elements, record.count_bytes())
    log.info("%s arrays: %d bytes in all", direction, total)
