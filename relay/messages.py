"""Messages on the relay: pushed into inboxes, answered once, read back.

The inbox entry is the truth about an instruction, the ``out`` hash about its answer. Everything here is idempotent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from fedq.apps.error import Error
from fedq.apps.wire import encode_error
from fedq.relay.connection import Relay
from fedq.relay.keys import GROUP
from fedq.relay.texts import text, words

PUSH_BATCH = 200
"""Messages per step: keeps a push to thousands of nodes from holding up the server."""


class Push(Enum):
    """What became of a push."""

    OK = "OK"
    STOPPED = "STOPPED"
    FENCED = "FENCED"
    STALE = "STALE"
    MISMATCH = "MISMATCH"
    MISSING = "MISSING"
    UNKNOWN_NODE = "UNKNOWN_NODE"


class Reason(Enum):
    """Why a message is answered by an error without (or against) a worker. The step checks each."""

    EXPIRED = "EXPIRED"
    CANCELLED = "CANCELLED"
    OFFLINE = "OFFLINE"
    EXHAUSTED = "EXHAUSTED"
    REFUSED = "REFUSED"


class Answered(Enum):
    """What became of an error answer."""

    ANSWERED = "ANSWERED"
    ALREADY = "ALREADY"
    GONE = "GONE"
    NOT_SO = "NOT_SO"
    RUN_OVER = "RUN_OVER"
    FENCED = "FENCED"


@dataclass(frozen=True, slots=True)
class Content:
    """A payload that any number of messages share: wire data, the digests it names, and its size with them."""

    body: bytes
    objects: tuple[str, ...] = ()
    nbytes: int = 0


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One message of a push; ``content`` is an index into the push's contents, ``ttl`` in seconds."""

    message_id: str
    node: str
    content: int
    type: str
    group: str
    ttl: float
    on_offline: str = "wait"


@dataclass(frozen=True, slots=True)
class Pushed:
    """The outcome of a push; ``created`` is the server's clock in seconds, ``began`` the same when the push was called
    first, ``detail`` the digests or names at fault."""

    outcome: Push
    revision: int = 0
    created: float = 0.0
    began: float = 0.0
    detail: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Sent:
    """An instruction that was pushed and not yet freed. ``deadline`` in seconds since the epoch."""

    message_id: str
    node: str
    entry: str
    seq: int
    deadline: float
    checkpoint: int
    on_offline: str


@dataclass(frozen=True, slots=True)
class Instruction:
    """An inbox entry. ``kind`` is ``message`` or ``wake``; a wake has no more than its entry id."""

    entry: str
    kind: str
    message_id: str = ""
    run: int = 0
    seq: int = 0
    type: str = ""
    group: str = ""
    created: float = 0.0
    deadline: float = 0.0
    on_offline: str = "wait"
    body: bytes = b""
    objects: tuple[str, ...] = ()
    nbytes: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """The authoritative answer of a message. ``body`` is a RecordDict (``ok``) or an Error in wire data."""

    message_id: str
    node: str
    run: int
    ok: bool
    body: bytes
    objects: tuple[str, ...]
    own: tuple[str, ...]
    seq: int
    code: int
    attempt: int
    nbytes: int
    created: float


def message_id(run: int, checkpoint: int, push: int, index: int, node: str) -> str:
    """The id of a message: the same for the same place in a run, so that a repeated push is recognised."""
    text = f"{run}/{checkpoint}/{push}/{index}/{node}"
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def request_digest(contents: Sequence[Content], messages: Sequence[Outgoing]) -> str:
    """What a push asks for, as a digest for the journal."""
    sums = [hashlib.blake2b(c.body, digest_size=16).hexdigest() for c in contents]
    whole = hashlib.blake2b(digest_size=16)
    for m in messages:
        whole.update(f"{m.message_id}|{m.node}|{sums[m.content]}|{m.type}|{m.group}|{m.ttl}|{m.on_offline}\n".encode())
    return whole.hexdigest()


def push(
    relay: Relay,
    run: int,
    token: str,
    checkpoint: int,
    call: int,
    contents: Sequence[Content],
    messages: Sequence[Outgoing],
) -> Pushed:
    """Put messages into their nodes' inboxes.

    Guarantees: at most one inbox entry per message id, however often this is repeated; nothing is written unless the
    run lives, ``token`` is its current one, the journal agrees, every node is registered and every object is complete.
    Pushes of more than ``PUSH_BATCH`` messages are atomic per batch, and complete after a repeat.
    """
    keys = relay.keys
    request = request_digest(contents, messages)
    result = Pushed(Push.OK)
    for start in range(0, max(1, len(messages)), PUSH_BATCH):
        batch = messages[start : start + PUSH_BATCH]
        names = [keys.run(run), keys.sent(run), keys.deadlines(run), keys.journal(run), keys.run_nodes(run)]
        names += [keys.run_objs(run), keys.nodes()]
        args: list[Any] = [run, token, checkpoint, call, request, keys.obj(""), len(contents)]
        for content in contents:
            args += [content.body, " ".join(content.objects), content.nbytes or len(content.body)]
        for m in batch:
            names += [keys.inbox(m.node), keys.order(m.node, run)]
            ttl = int(m.ttl * 1000)
            args += [
                m.message_id,
                m.node,
                m.content,
                m.type,
                m.group,
                ttl,
                m.on_offline,
                keys.out(m.node, m.message_id),
            ]
        reply = relay.call("push", names, args)
        outcome = Push(text(reply[0]))
        if outcome is not Push.OK:
            return Pushed(outcome, detail=tuple(text(item) for item in reply[1:]))
        result = Pushed(outcome, revision=int(reply[1]), created=int(reply[2]) / 1000, began=int(reply[3]) / 1000)
    return result


def answer(
    relay: Relay,
    run: int,
    node: str,
    entry: str,
    message: str,
    reason: Reason,
    error: Error,
    *,
    token: str = "",
) -> Answered:
    """Answer a message by an error. Overrides a lease and needs no turn; the reason is checked inside the step.

    A ServerApp gives its ``token``, and is refused when it is no longer the run's.
    """
    keys = relay.keys
    reply = relay.call(
        "answer",
        [keys.inbox(node), keys.claims(node), keys.order(node, run), keys.out(node, message), keys.replies(node, run)],
        [
            *(keys.run(run), entry, message, reason.value, encode_error(error), error.code),
            *(run, GROUP, keys.node_alive(node), token),
        ],
    )
    return Answered(text(reply[0]))


def read_answers(relay: Relay, wanted: Iterable[tuple[str, str]]) -> dict[str, Answer]:
    """The answers of (node, message) pairs that are there, in one round trip."""
    pairs = list(wanted)
    if not pairs:
        return {}
    with relay.errors(), relay.redis.pipeline(transaction=False) as pipe:
        for node, message in pairs:
            pipe.hgetall(relay.keys.out(node, message))
        raw = pipe.execute()
    return {
        message: parse_answer(node, message, fields)
        for (node, message), fields in zip(pairs, raw, strict=True)
        if fields
    }


def parse_answer(node: str, message: str, fields: Mapping[bytes, bytes]) -> Answer:
    """An ``out`` hash as an Answer."""
    return Answer(
        message_id=message,
        node=node,
        run=int(fields[b"run"]),
        ok=fields[b"ok"] == b"1",
        body=fields[b"body"],
        objects=words(fields[b"objs"]),
        own=words(fields[b"own"]),
        seq=int(fields[b"seq"]),
        code=int(fields[b"code"] or 0),
        attempt=int(fields[b"attempt"]),
        nbytes=int(fields[b"bytes"]),
        created=int(fields[b"created"]) / 1000,
    )


def outstanding(relay: Relay, run: int) -> dict[str, Sent]:
    """Everything that was pushed and not yet freed, answered or not, by message id."""
    with relay.errors():
        raw: Any = relay.redis.hgetall(relay.keys.sent(run))
    return {text(message): parse_sent(text(message), text(value)) for message, value in raw.items()}


def parse_sent(message: str, value: str) -> Sent:
    """A value of ``run:<r>:sent``."""
    node, entry, seq, deadline, checkpoint, on_offline = value.split("|")
    return Sent(message, node, entry, int(seq), int(deadline) / 1000, int(checkpoint), on_offline)


def expired(relay: Relay, run: int, now: float, limit: int = 100) -> list[str]:
    """Messages of the run whose deadline lies before ``now`` (server clock, seconds), the oldest first."""
    with relay.errors():
        raw: Any = relay.redis.zrangebyscore(relay.keys.deadlines(run), "-inf", int(now * 1000), start=0, num=limit)
    return [text(item) for item in raw]


def parse_entry(entry: bytes | str, fields: Mapping[bytes, bytes] | Sequence[bytes]) -> Instruction:
    """An inbox entry, as XREADGROUP or a step returns it."""
    if not isinstance(fields, Mapping):
        flat = list(fields)
        fields = dict(zip(flat[::2], flat[1::2], strict=True))
    kind = text(fields.get(b"kind", b"message"))
    if kind != "message":
        return Instruction(text(entry), kind)
    return Instruction(
        entry=text(entry),
        kind=kind,
        message_id=text(fields[b"id"]),
        run=int(fields[b"run"]),
        seq=int(fields[b"seq"]),
        type=text(fields[b"type"]),
        group=text(fields[b"group"]),
        created=int(fields[b"created"]) / 1000,
        deadline=int(fields[b"deadline"]) / 1000,
        on_offline=text(fields[b"offline"]),
        body=fields[b"body"],
        objects=words(fields[b"objs"]),
        nbytes=int(fields[b"bytes"]),
    )
