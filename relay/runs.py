"""Runs on the relay: submitted, claimed by a ServerApp's attempt, checkpointed, ended. Clean-up: fedq.relay.cleanup."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import msgspec

from fedq.relay.connection import Relay
from fedq.relay.contexts import ContextVersion, parse_version
from fedq.relay.errors import RunNotFound
from fedq.relay.texts import text, words

RUN_LEASE = 8.0
"""Seconds that a ServerApp's attempt holds its run without renewal. Renewed every second."""

FREED_AT_ONCE = 100
"""Messages freed in one step, which holds up the server's other clients."""

CLIENT_TOKEN_TTL = 24 * 3600
"""Seconds that a repeated submit with the same client token finds its run."""

OPEN = ("pending", "running")
ENDED = ("finished", "failed", "stopped")


class Step(Enum):
    """What became of a ServerApp's step."""

    OK = "OK"
    BUSY = "BUSY"
    OVER = "OVER"
    STOPPED = "STOPPED"
    GONE = "GONE"
    EXHAUSTED = "EXHAUSTED"
    FENCED = "FENCED"
    STALE = "STALE"
    MISSING = "MISSING"
    SEEN = "SEEN"
    CLEANED = "CLEANED"
    ALIVE = "ALIVE"


@dataclass(frozen=True, slots=True)
class RunSpec:
    """What a submit asks for. ``config`` is wire data; ``*_bundle`` are digests of uploaded app bundles.

    ``time_limit`` is in seconds per message (0: none); ``kind`` tells how a bundle is unpacked.
    """

    client_token: str
    name: str = ""
    user: str = ""
    config: bytes = b""
    server_bundle: str = ""
    client_bundle: str = ""
    server_size: int = 0
    client_size: int = 0
    server_kind: str = "object"
    client_kind: str = "object"
    client_signature: str = ""
    selector: Mapping[str, str] = field(default_factory=dict)
    durability: str = "none"
    max_deliveries: int = 5
    max_attempts: int = 5
    time_limit: float = 0.0
    extra: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AppInfo:
    """What a node learns of a run with each claim."""

    run: int
    name: str
    user: str
    config: bytes
    bundle: str
    size: int
    kind: str
    signature: str
    selector: Mapping[str, str]
    time_limit: float
    max_deliveries: int


@dataclass(frozen=True, slots=True)
class RunInfo:
    """A run as everybody sees it. Times are the server's, in seconds since the epoch, 0.0 where not yet."""

    run_id: int
    status: str
    name: str
    user: str
    created: float
    started: float
    ended: float
    attempt: int
    tries: int
    checkpoint: int
    revision: int
    lease: float
    token: str
    owner: str
    detail: str
    reason: str
    traceback: str
    config: bytes
    server_bundle: str
    server_size: int
    server_kind: str
    client_bundle: str
    client_kind: str
    selector: Mapping[str, str]
    durability: str
    max_deliveries: int
    max_attempts: int
    time_limit: float
    result: bytes
    result_objects: tuple[str, ...]
    fields: Mapping[str, bytes]

    @property
    def over(self) -> bool:
        """Whether the run has ended."""
        return self.status not in OPEN

    @property
    def resumable(self) -> bool:
        """Whether :func:`resume_run` can go on with it: it failed, and what it left to go on from is still there."""
        left = self.checkpoint > 0 or self.durability == "replay"
        return self.status == "failed" and left and "cleaned" not in self.fields


@dataclass(frozen=True, slots=True)
class RunClaim:
    """The outcome of claiming a run, with what the attempt starts from."""

    outcome: Step
    attempt: int = 0
    checkpoint: int = 0
    revision: int = 0
    context: ContextVersion | None = None
    info: RunInfo | None = None
    busy_for: float = 0.0
    status: str = ""


@dataclass(frozen=True, slots=True)
class Saved:
    """The outcome of a checkpoint: its number, the run's revision, how many of the folded messages are done with."""

    outcome: Step
    checkpoint: int = 0
    revision: int = 0
    freed: int = 0
    missing: tuple[str, ...] = ()


# -- submit, read -----------------------------------------------------------------------------------------------------


def submit(relay: Relay, spec: RunSpec) -> int:
    """Make a run, or find the one that the same client token made. Returns its id.

    Bundles must have been uploaded (objects.upload_bundle); ObjectMissing-like trouble shows as RunNotFound.
    """
    keys = relay.keys
    fields: dict[str, Any] = {
        "name": spec.name,
        "user": spec.user,
        "config": spec.config,
        "server_bundle": spec.server_bundle,
        "client_bundle": spec.client_bundle,
        "server_size": spec.server_size,
        "client_size": spec.client_size,
        "server_kind": spec.server_kind,
        "client_kind": spec.client_kind,
        "client_signature": spec.client_signature,
        "selector": json.dumps(dict(spec.selector), sort_keys=True),
        "durability": spec.durability,
        "max_deliveries": spec.max_deliveries,
        "max_attempts": spec.max_attempts,
        "time_limit": spec.time_limit,
        **spec.extra,
    }
    bundles = " ".join(dict.fromkeys(d for d in (spec.server_bundle, spec.client_bundle) if d))
    args: list[Any] = [keys.base, CLIENT_TOKEN_TTL, keys.obj(""), bundles]
    for name, value in fields.items():
        args += [name, value]
    reply = relay.call(
        "submit",
        [keys.submitted(spec.client_token), keys.run_counter(), keys.runs(), keys.alive_runs(), keys.wake()],
        args,
    )
    if text(reply[0]) == "MISSING":
        raise RunNotFound("the app's bundle is no longer on the server; submit again")
    return int(reply[1])


def run_info(relay: Relay, run: int) -> RunInfo:
    """The run as it stands. Raises RunNotFound."""
    with relay.errors():
        raw: Any = relay.redis.hgetall(relay.keys.run(run))
    if not raw or b"status" not in raw:
        raise RunNotFound(f"there is no run {run}; fedq runs lists those that are kept", run_id=run)
    return parse_run(run, raw)


def list_runs(relay: Relay, limit: int = 100) -> list[RunInfo]:
    """The newest runs, newest first, in two round trips."""
    with relay.errors():
        newest: Any = relay.redis.zrevrange(relay.keys.runs(), 0, limit - 1)
        ids = [int(item) for item in newest]
        with relay.redis.pipeline(transaction=False) as pipe:
            for run in ids:
                pipe.hgetall(relay.keys.run(run))
            raw = pipe.execute() if ids else []
    return [parse_run(run, fields) for run, fields in zip(ids, raw, strict=True) if fields]


def alive_runs(relay: Relay) -> list[int]:
    """Runs that are not over, or over and not yet cleaned up, lowest id first."""
    with relay.errors():
        raw: Any = relay.redis.smembers(relay.keys.alive_runs())
    return sorted(int(item) for item in raw)


def run_nodes(relay: Relay, run: int) -> list[str]:
    """The nodes that the run sent messages to."""
    with relay.errors():
        raw: Any = relay.redis.smembers(relay.keys.run_nodes(run))
    return sorted(text(item) for item in raw)


# -- the ServerApp's steps --------------------------------------------------------------------------------------------


def claim_run(relay: Relay, run: int, token: str, *, lease: float = RUN_LEASE, owner: str = "") -> RunClaim:
    """Become the run's ServerApp. The same token gets the same answer; a live holder is BUSY."""
    keys = relay.keys
    reply = relay.call(
        "claim_run", [keys.run(run), keys.run_ctx(run), keys.events(run)], [token, int(lease * 1000), owner]
    )
    outcome = Step(text(reply[0]))
    if outcome is Step.OK:
        flat = reply[5]
        return RunClaim(
            outcome,
            attempt=int(reply[1]),
            checkpoint=int(reply[2]),
            revision=int(reply[3]),
            context=parse_version(reply[4]),
            info=parse_run(run, dict(zip(flat[::2], flat[1::2], strict=True))),
        )
    if outcome is Step.BUSY:
        return RunClaim(outcome, busy_for=int(reply[1]) / 1000)
    return RunClaim(outcome, status=text(reply[1]) if len(reply) > 1 else "")


def renew_run(relay: Relay, run: int, token: str, *, lease: float = RUN_LEASE) -> Step:
    """Go on holding the run: OK, FENCED or OVER. Goes through when the server's memory is full."""
    return _renew(relay, run, token, lease, counts=True)


def release_run(relay: Relay, run: int, token: str, *, counts: bool = True) -> Step:
    """Give the run back for the next attempt, and wake the SuperLinks. ``counts=False`` gives the attempt back."""
    return _renew(relay, run, token, 0, counts=counts)


def _renew(relay: Relay, run: int, token: str, lease: float, *, counts: bool) -> Step:
    reply = relay.call("renew_run", [relay.keys.run(run), relay.keys.wake()], [token, int(lease * 1000), int(counts)])
    return Step(text(reply[0]))


def save_checkpoint(
    relay: Relay,
    run: int,
    token: str,
    checkpoint: int,
    context: tuple[bytes, Sequence[str]],
    folded: Iterable[str] = (),
) -> Saved:
    """Write the checkpoint that follows ``checkpoint``: Context and free-list in one step. A repeat answers the same.

    ``context`` is wire data and the digests it names, uploaded with owner ``ctx<checkpoint + 1>``. The first
    :data:`FREED_AT_ONCE` of the folded messages are freed in the same step; freeing the others follows by
    :func:`free`.
    """
    keys = relay.keys
    data, objects = context
    reply = relay.call(
        "checkpoint",
        [keys.run(run), keys.run_ctx(run), keys.journal(run), keys.run_objs(run), keys.sent(run), keys.deadlines(run)],
        [run, token, checkpoint, data, " ".join(objects), " ".join(folded), keys.obj(""), keys.base, FREED_AT_ONCE],
    )
    outcome = Step(text(reply[0]))
    if outcome is Step.OK:
        return Saved(outcome, int(reply[1]), int(reply[2]), freed=int(reply[3]))
    return Saved(outcome, missing=tuple(text(item) for item in reply[1:]) if outcome is Step.MISSING else ())


def free(relay: Relay, run: int, token: str, messages: Iterable[str], *, batch: int = FREED_AT_ONCE) -> int:
    """Delete answered messages, their pointers and arrays, in batches. Idempotent; unanswered ones stay."""
    keys = relay.keys
    ids, freed = list(messages), 0
    for start in range(0, len(ids), batch):
        reply = relay.call(
            "free",
            [keys.run(run), keys.sent(run), keys.deadlines(run), keys.run_objs(run)],
            [run, token, keys.base, *ids[start : start + batch]],
        )
        if text(reply[0]) != "OK":
            return freed
        freed += int(reply[1])
    return freed


def finish(
    relay: Relay,
    run: int,
    token: str,
    status: str,
    *,
    result: tuple[bytes, Sequence[str]] = (b"", ()),
    reason: str = "",
    traceback: str = "",
) -> Step:
    """End a run, once. ``token=""`` is for those who need none: a person's stop, or housekeeping's failure.

    ``result`` is wire data with the digests it names, uploaded with owner ``result``.
    """
    if status not in ENDED:
        raise ValueError(f"a run ends as one of {', '.join(ENDED)}, not {status!r}")
    keys = relay.keys
    reply = relay.call(
        "finish",
        [keys.run(run), keys.events(run), keys.wake(), keys.run_objs(run)],
        [
            *(run, token, status, reason, traceback, result[0], " ".join(result[1]), keys.obj("")),
            json.dumps({"status": status, "reason": reason}),
        ],
    )
    return Step(text(reply[0]))


def stop_run(relay: Relay, run: int, reason: str = "stopped by a user") -> bool:
    """Stop a run: its ServerApp, and its ClientApps everywhere, within two seconds. True if it was not over yet."""
    run_info(relay, run)
    outcome = finish(relay, run, "", "stopped", reason=reason)
    return outcome is Step.OK


def resume_run(relay: Relay, run: int, token: str = "") -> Step:
    """Let a failed run go on from its last checkpoint, its attempts counted anew. The same ``token``: the same answer.

    OK, ALIVE (it is not over), OVER (it finished or was stopped), or CLEANED (what it would need is gone, or going).
    """
    keys = relay.keys
    reply = relay.call(
        "resume_run",
        [keys.run(run), keys.events(run), keys.wake()],
        [run, token or secrets.token_hex(8), json.dumps({"status": "pending", "reason": "resumed"})],
    )
    return Step(text(reply[0]))


def set_detail(relay: Relay, run: int, detail: str) -> Step:
    """What a run waits for, or died of last, for people; nothing depends on it. OVER also of one that is gone."""
    reply = relay.call("detail", [relay.keys.run(run)], [detail])
    return Step(text(reply[0]))


# -- parsing ----------------------------------------------------------------------------------------------------------


def parse_app_info(run: int, raw: Sequence[bytes | None]) -> AppInfo:
    """The run fields that a claim returns, in the order of the step."""
    name, config, bundle, size, kind, signature, selector, time_limit, max_deliveries, user = (v or b"" for v in raw)
    return AppInfo(
        run=run,
        name=text(name),
        user=text(user),
        config=config,
        bundle=text(bundle),
        size=int(size or 0),
        kind=text(kind),
        signature=text(signature),
        selector=msgspec.json.decode(selector or b"{}"),
        time_limit=float(time_limit or 0),
        max_deliveries=int(max_deliveries or 0),
    )


def parse_run(run: int, raw: Mapping[bytes, bytes]) -> RunInfo:
    """A run hash."""

    def word(name: str, default: str = "") -> str:
        return text(raw.get(name.encode(), default.encode()))

    def ms(name: str) -> float:
        return int(word(name) or 0) / 1000

    return RunInfo(
        run_id=run,
        status=word("status", "gone"),
        name=word("name"),
        user=word("user"),
        created=ms("created"),
        started=ms("started"),
        ended=ms("ended"),
        attempt=int(word("attempt") or 0),
        tries=int(word("tries") or 0),
        checkpoint=int(word("checkpoint") or 0),
        revision=int(word("rev") or 0),
        lease=ms("lease"),
        token=word("token"),
        owner=word("owner"),
        detail=word("detail"),
        reason=word("reason"),
        traceback=word("traceback"),
        config=raw.get(b"config", b""),
        server_bundle=word("server_bundle"),
        server_size=int(word("server_size") or 0),
        server_kind=word("server_kind"),
        client_bundle=word("client_bundle"),
        client_kind=word("client_kind"),
        selector=msgspec.json.decode(word("selector") or "{}"),
        durability=word("durability", "none"),
        max_deliveries=int(word("max_deliveries") or 0),
        max_attempts=int(word("max_attempts") or 0),
        time_limit=float(word("time_limit") or 0),
        result=raw.get(b"result", b""),
        result_objects=words(raw.get(b"result_objs", b"")),
        fields={text(name): value for name, value in raw.items()},
    )
