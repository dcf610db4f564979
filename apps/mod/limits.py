"""Mods that let a reply out only within limits. Each refuses the whole reply; none changes it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase

from fedq.apps.context import Context
from fedq.apps.error import Error
from fedq.apps.errors import ReplyRefused
from fedq.apps.message import Message, make_message
from fedq.apps.message_type import MessageType
from fedq.apps.mod.compose import ClientAppCallable
from fedq.apps.recorddict import RecordDict


class SizeLimitMod:
    """Refuses a reply whose content is larger than allowed, and a Context that grows beyond its own limit.

    What counts are the bytes of arrays, numbers, texts and keys; the wire adds a little. The Context of a run is kept
    at the relay between messages, so that it leaves the node as well.

    Args:
        max_bytes: of the content of a reply.
        max_state_bytes: of ``context.state`` after the message; None: `max_bytes`.
    """

    def __init__(self, max_bytes: int, max_state_bytes: int | None = None) -> None:
        for name, value in (("max_bytes", max_bytes), ("max_state_bytes", max_state_bytes)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
                raise ValueError(f"{name} must be a number of bytes, not {value!r}")
        self.max_bytes = max_bytes
        self.max_state_bytes = max_bytes if max_state_bytes is None else max_state_bytes

    def __call__(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        """Call what lies inside, and weigh what it returned."""
        reply = call_next(message, context)
        if reply.has_error():
            return reply
        for what, records, limit in (
            ("the reply has", reply.content, self.max_bytes),
            ("the Context has", context.state, self.max_state_bytes),
        ):
            size = sum(len(name) + record.count_bytes() for name, record in records.items())
            if size > limit:
                raise ReplyRefused(f"{what} {size} bytes, and {limit} are allowed")
        return reply


class DenyKeysMod:
    """Refuses a reply, or a Context, that holds a record or a key of one of these names.

    Args:
        patterns: shell patterns (``*``, ``?``, ``[abc]``; upper and lower case differ), compared with the name of each
            record (``arrays``), with each key in it (``loss``), and with both together (``metrics/loss``).
    """

    def __init__(self, *patterns: str) -> None:
        self.patterns = _checked(patterns)

    def __call__(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        """Call what lies inside, and look at the names in what it returned."""
        reply = call_next(message, context)
        if reply.has_error():
            return reply
        for what, records in (("the reply", reply.content), ("the Context", context.state)):
            for names in _names(records):
                for pattern in self.patterns:
                    if any(fnmatchcase(name, pattern) for name in names):
                        raise ReplyRefused(f"{what} holds {names[-1]!r}, and {pattern!r} may not leave this node")
        return reply


class AllowKeysMod:
    """Refuses a reply that holds anything else than these: a list of what may leave forgets less than one of what may
    not.

    It does not look at the Context, in which mods inside (secure aggregation, compression) keep records of their own.
    That lies at the relay too: ``SizeLimitMod(max_bytes, max_state_bytes=0)`` beside it lets none grow.

    Args:
        patterns: shell patterns, compared with record and key together: ``arrays/*``, ``metrics/num-examples``. A
            record without keys is compared as ``record/``.
    """

    def __init__(self, *patterns: str) -> None:
        self.patterns = _checked(patterns)

    def __call__(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        """Call what lies inside, and look at the names in what it returned."""
        reply = call_next(message, context)
        if reply.has_error():
            return reply
        for name, record in reply.content.items():
            for path in [f"{name}/{key}" for key in record] or [f"{name}/"]:
                if not any(fnmatchcase(path, pattern) for pattern in self.patterns):
                    raise ReplyRefused(
                        f"the reply holds {path!r}, and only {_listed(self.patterns)} may leave this node"
                    )
        return reply


def train_arrays_only_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Refuse arrays in replies to messages that do not train.

    Clipping and noise work on training replies. Without this an app could send the model in answer to a query.
    """
    reply = call_next(message, context)
    kind = message.metadata.message_type.partition(".")[0]
    if kind != MessageType.TRAIN and not reply.has_error() and len(reply.content.array_records):
        raise ReplyRefused(f"the reply to a message of type {kind!r} holds arrays, which may leave in training only")
    return reply


def withhold_error_text_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Replace reason and traceback of an error reply, in which an app's exception may quote data. The code stays."""
    reply = call_next(message, context)
    if not reply.has_error():
        return reply
    node = context.node_id
    error = Error(reply.error.code, f"the ClientApp failed; node {node} keeps the text, which stands in its log")
    return make_message(reply.metadata, error=error)


def _names(records: RecordDict) -> Iterator[tuple[str, ...]]:
    for name, record in records.items():
        yield (name,)
        for key in record:
            yield (key, f"{name}/{key}")


def _checked(patterns: tuple[str, ...]) -> tuple[str, ...]:
    if not patterns:
        raise ValueError("at least one pattern is needed, such as 'metrics/*'")
    for pattern in patterns:
        if not isinstance(pattern, str) or not pattern:
            raise ValueError(f"a pattern is a text, not {pattern!r}")
    return patterns


def _listed(patterns: Iterable[str]) -> str:
    return ", ".join(repr(pattern) for pattern in patterns)
