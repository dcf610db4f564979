"""The node's side of a message: claim, renew, release, commit.

A token is drawn by the worker's parent process; the newest token in ``claims`` is the only one whose commit counts.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from fedq.relay.connection import Relay
from fedq.relay.contexts import KEPT_VERSIONS, ContextVersion, parse_version
from fedq.relay.keys import GROUP
from fedq.relay.messages import Instruction, parse_entry
from fedq.relay.runs import AppInfo, parse_app_info
from fedq.relay.texts import text

LEASE = 15.0
"""Seconds that a claim lives without renewal. Renewed every second."""


class Claim(Enum):
    """What became of a claim."""

    OK = "OK"
    GONE = "GONE"
    STOPPED = "STOPPED"
    NOT_YET = "NOT_YET"
    EXPIRED = "EXPIRED"
    BUSY = "BUSY"
    LAPSED = "LAPSED"
    EXHAUSTED = "EXHAUSTED"


class Renew(Enum):
    """What became of a renewal. Only OK goes on; UNCLAIMED says that the claim has not been made, or was released."""

    OK = "OK"
    STOPPED = "STOPPED"
    CANCELLED = "CANCELLED"
    SUPERSEDED = "SUPERSEDED"
    COMMITTED = "COMMITTED"
    UNCLAIMED = "UNCLAIMED"


class Commit(Enum):
    """What became of a commit. Only COMMITTED changed anything (perhaps the first time it was called)."""

    COMMITTED = "COMMITTED"
    SUPERSEDED = "SUPERSEDED"
    STOPPED = "STOPPED"
    MISSING = "MISSING"


@dataclass(frozen=True, slots=True)
class Claimed:
    """A claim and all that the ClientApp needs: instruction, newest Context, and what the run says of its app.

    ``now`` is the server's clock in seconds, against which the instruction's deadline counts.
    """

    outcome: Claim
    attempt: int = 0
    instruction: Instruction | None = None
    context: ContextVersion | None = None
    app: AppInfo | None = None
    busy_for: float = 0.0
    status: str = ""
    now: float = 0.0


@dataclass(frozen=True, slots=True)
class Committed:
    """The outcome of a commit, with the digests that are not (completely) uploaded."""

    outcome: Commit
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ClaimState:
    """A claim as it stands. An empty ``token`` is a free one whose attempts are remembered."""

    attempt: int
    token: str
    lease_end: float
    worker: str


def new_token() -> str:
    """A token that no other holder has."""
    return secrets.token_hex(8)


def claim(
    relay: Relay, node: str, run: int, entry: str, message: str, token: str, *, lease: float = LEASE, worker: str = ""
) -> Claimed:
    """Claim a message. The same token gets the same answer; a live claim of another is BUSY.

    OK needs: the run lives, the entry is there, its turn in (run, node) has come, it has not expired, and the run's
    ``max_deliveries`` is not used up. Each OK with a new token counts as an attempt.
    """
    return parse_claimed(run, entry, ask_claim(relay, node, run, entry, message, token, lease=lease, worker=worker))


def ask_claim(
    relay: Relay, node: str, run: int, entry: str, message: str, token: str, *, lease: float = LEASE, worker: str = ""
) -> list[Any]:
    """:func:`claim` without a look at what the server answers: plain values, for :func:`parse_claimed`."""
    keys = relay.keys
    return relay.call(
        "claim",
        [keys.inbox(node), keys.claims(node), keys.order(node, run), keys.node_ctx(node, run)],
        [keys.run(run), entry, message, token, int(lease * 1000), worker.replace("|", "/")],
    )


def size(reply: Any) -> int:
    """Bytes of the values in a server's answer."""
    if isinstance(reply, list):
        return sum(size(item) for item in reply)
    return len(reply) if isinstance(reply, bytes) else 8


def parse_claimed(run: int, entry: str, reply: Sequence[Any]) -> Claimed:
    """What the server has answered to :func:`ask_claim`."""
    outcome = Claim(text(reply[0]))
    if outcome is Claim.OK:
        return Claimed(
            outcome,
            attempt=int(reply[1]),
            instruction=parse_entry(entry, reply[2]),
            context=parse_version(reply[3]),
            app=parse_app_info(run, reply[4]),
            now=int(reply[5]) / 1000,
        )
    if outcome is Claim.BUSY:
        return Claimed(outcome, busy_for=int(reply[1]) / 1000)
    if outcome is Claim.EXHAUSTED:
        return Claimed(outcome, attempt=int(reply[1]))
    return Claimed(outcome, status=text(reply[1]) if len(reply) > 1 else "")


def renew(relay: Relay, node: str, run: int, entry: str, message: str, token: str, *, lease: float = LEASE) -> Renew:
    """Extend a claim, or learn why it must end. Goes through when the server's memory is full."""
    keys = relay.keys
    reply = relay.call(
        "renew",
        [keys.inbox(node), keys.claims(node), keys.out(node, message)],
        [keys.run(run), entry, message, token, int(lease * 1000)],
    )
    return Renew(text(reply[0]))


def release(relay: Relay, node: str, message: str, token: str, *, counts: bool) -> bool:
    """Free the claim that ``token`` holds, and wake the dispatcher. ``counts=False`` gives the attempt back.

    True if this call freed it. A claim of another token is left alone.
    """
    return _release(relay, node, message, token, counts=counts, lapsed=False)


def lapse(relay: Relay, node: str, message: str, token: str) -> bool:
    """Free a claim whose lease has ended. For the reconciler alone, after a lease period of uninterrupted service."""
    return _release(relay, node, message, token, counts=True, lapsed=True)


def _release(relay: Relay, node: str, message: str, token: str, *, counts: bool, lapsed: bool) -> bool:
    keys = relay.keys
    reply = relay.call(
        "release",
        [keys.claims(node)],
        [message, token, int(counts), int(lapsed), keys.inbox(node), keys.node_alive(node)],
    )
    return text(reply[0]) == "RELEASED"


def commit(
    relay: Relay,
    node: str,
    run: int,
    entry: str,
    message: str,
    token: str,
    *,
    ok: bool,
    body: bytes,
    objects: Sequence[str] = (),
    context: tuple[bytes, Sequence[str]] | None = None,
    nbytes: int = 0,
    code: int = 0,
) -> Committed:
    """Write the answer and the new Context version: all or nothing, once.

    The same token again is COMMITTED again; a token that is not the newest is SUPERSEDED and changes nothing.
    ``objects`` are the digests that ``body`` names: each must be one of the request's or completely
    uploaded by this node (MISSING lists those that are not); a Context names only uploads of this node.
    An error answer passes ``context=None``.
    """
    keys = relay.keys
    data, context_objects = context if context is not None else (b"", ())
    reply = relay.call(
        "commit",
        [
            keys.inbox(node),
            keys.claims(node),
            keys.order(node, run),
            keys.out(node, message),
            keys.replies(node, run),
            keys.node_ctx(node, run),
            keys.node_objs(node, run),
        ],
        [
            *(keys.run(run), entry, message, token, keys.node_obj(node, ""), GROUP, keys.node_alive(node)),
            *(int(ok), body, " ".join(objects), code, nbytes or len(body)),
            *(int(context is not None), data, " ".join(context_objects), KEPT_VERSIONS, run),
        ],
    )
    outcome = Commit(text(reply[0]))
    return Committed(outcome, tuple(text(item) for item in reply[1:]) if outcome is Commit.MISSING else ())


def read_claims(relay: Relay, node: str) -> dict[str, ClaimState]:
    """Every claim of the node by message id."""
    with relay.errors():
        raw: Any = relay.redis.hgetall(relay.keys.claims(node))
    return {text(message): parse_claim(value) for message, value in raw.items()}


def parse_claim(value: bytes | str) -> ClaimState:
    """A value of ``node:<n>:claims``."""
    attempt, token, lease_end, worker = text(value).split("|", 3)
    return ClaimState(int(attempt), token, int(lease_end) / 1000, worker)
