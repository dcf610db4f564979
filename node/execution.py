"""One ClientApp execution, in the process that runs it: claim, load, call, upload, commit.

What goes wrong on the app's side becomes an error reply that is committed like any other, with the Context left as it
was. What goes wrong on the server's side is waited for: the parent renews the claim meanwhile, and kills when a renewal
says that the message is settled some other way.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from fedq.apps.client_app import error_of
from fedq.apps.context import Context
from fedq.apps.error import Error, ErrorCode
from fedq.apps.errors import AppError, WireError
from fedq.apps.message import Message, make_message
from fedq.apps.metadata import Metadata
from fedq.apps.mod import ClientAppCallable
from fedq.apps.recorddict import RecordDict
from fedq.apps.wire import Encoded, decode, decode_user_config, encode, encode_error, referenced
from fedq.node.bundle import AppCache, AppUnavailable
from fedq.node.cache import ArrayCache
from fedq.node.imposed import Imposed
from fedq.node.jobqueue import describe
from fedq.node.settings import NodeSettings
from fedq.relay import claims, messages, nodes, objects
from fedq.relay.claims import Claim, Claimed, Commit
from fedq.relay.connection import Relay
from fedq.relay.errors import (
    ObjectCorrupt,
    ObjectMissing,
    RelayFull,
    RelayReadOnly,
    RelayUnavailable,
    RunOver,
)
from fedq.relay.jobs import Outcome, Parent, app_finished, app_started
from fedq.relay.messages import Answered, Instruction, Reason
from fedq.relay.pauses import Pauses
from fedq.relay.runs import AppInfo

logger = logging.getLogger(__name__)

T = TypeVar("T")

BY_PARENT = 1024 * 1024
"""Bytes of a reply and a Context that the parent commits for a process forked for one message."""

WAITED_FOR = (RelayUnavailable, RelayFull, RelayReadOnly)
"""Troubles of the server that pass."""


@dataclass(frozen=True, slots=True)
class Errand:
    """What a job says: which message, and under which token."""

    node: str
    run: int
    entry: str
    message: str
    token: str
    type: str
    group: str
    worker: str


@dataclass(slots=True)
class Reply:
    """What will be committed."""

    ok: bool
    body: bytes
    objects: tuple[str, ...] = ()
    context: tuple[bytes, tuple[str, ...]] | None = None
    code: int = 0
    error: Error | None = None
    blobs: Mapping[str, memoryview] | None = None
    nbytes: int = 0

    def committed_as(self) -> dict[str, Any]:
        """What :func:`claims.commit` is told of it, here or by the parent: plain values."""
        return {
            "ok": self.ok,
            "body": self.body,
            "objects": self.objects,
            "context": self.context,
            "nbytes": self.nbytes,
            "code": self.code,
        }

    @classmethod
    def of_error(cls, error: Error) -> Reply:
        """An error reply; the Context stays as it was."""
        body = encode_error(error)
        return cls(False, body, code=int(error.code), error=error, nbytes=len(body))


class Failed(Exception):
    """Ends an execution early with an error reply."""

    def __init__(self, code: ErrorCode, reason: str, trace: str | None = None) -> None:
        super().__init__(reason)
        self.error = Error(code, reason, traceback=trace)


class Execution:
    """Carries out one errand. Made and used once, in the process that runs the app."""

    def __init__(
        self,
        settings: NodeSettings,
        relay: Relay,
        errand: Errand,
        *,
        apps: AppCache,
        cache: ArrayCache,
        imposed: Imposed | None = None,
        parent: Parent | None = None,
        on_claim: Callable[[int], None] = lambda attempt: None,
        on_error: Callable[[Error], None] = lambda error: None,
        on_replied: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self.settings = settings
        self.relay = relay
        self.errand = errand
        self.apps = apps
        self.cache = cache
        self.imposed = imposed if imposed is not None else Imposed(settings.mods)
        self._parent = parent
        self._on_claim = on_claim
        self._on_error = on_error
        self._on_replied = on_replied
        self._clock = clock
        self._wait = wait
        self._fetched: dict[str, memoryview] = {}
        self._deadline = float("inf")

    def run(self) -> Outcome:
        """Claim, execute, commit. Raises only what is our own mistake."""
        claimed = self._claim()
        if claimed.outcome is not Claim.OK:
            return self._not_claimed(claimed)
        instruction, app = claimed.instruction, claimed.app
        assert instruction is not None
        assert app is not None
        self._on_claim(claimed.attempt)
        self._deadline = instruction.deadline
        started = self._clock()
        try:
            reply = self._execute(claimed, instruction, app)
        except Failed as failed:
            reply = Reply.of_error(failed.error)
        app_finished()
        seconds = self._clock() - started
        if reply.error is not None:
            self._on_error(reply.error)
        self._on_replied()
        status = self._commit(reply, claimed)
        self.cache.put(self._fetched)
        return self._outcome(status, reply, claimed, seconds)

    def _claim(self) -> Claimed:
        """By the parent, or here."""
        e = self.errand
        if self._parent is not None and (answer := self._parent.ahead()) is not None:
            return claims.parse_claimed(e.run, e.entry, answer)
        return self._insist(
            lambda: claims.claim(
                self.relay, e.node, e.run, e.entry, e.message, e.token, lease=self.settings.lease, worker=e.worker
            )
        )

    # -- not our turn --------------------------------------------------------------------------------------------------

    def _not_claimed(self, claimed: Claimed) -> Outcome:
        """Answer what nobody will run; leave the rest to the dispatcher."""
        e = self.errand
        if claimed.outcome is Claim.EXPIRED:
            reason, error = (
                Reason.EXPIRED,
                Error(ErrorCode.MESSAGE_EXPIRED, f"its time was up before {e.node} came to run it"),
            )
        elif claimed.outcome is Claim.EXHAUSTED:
            reason = Reason.EXHAUSTED
            error = Error(
                ErrorCode.MAX_DELIVERIES,
                f"{e.node} has tried {claimed.attempt} times, and each time the process that ran the app was lost; "
                "the run allows no more (max_deliveries)",
            )
        else:
            return Outcome(claimed.outcome.value.lower().replace("_", " "))
        answered = self._insist(lambda: messages.answer(self.relay, e.run, e.node, e.entry, e.message, reason, error))
        if answered is Answered.ANSWERED:
            self._on_error(error)
        return Outcome(f"error {int(error.code)}", {"error": error.reason}, failure=error.reason)

    # -- the app -------------------------------------------------------------------------------------------------------

    def _execute(self, claimed: Claimed, instruction: Instruction, app: AppInfo) -> Reply:
        e = self.errand
        if (refusal := self.settings.trust.refusal(app.bundle, _signature(app.signature))) is not None:
            raise Failed(ErrorCode.APP_NOT_TRUSTED, f"{e.node} does not run this app: {refusal}")
        if not nodes.matches(self.settings.labels, app.selector):
            wanted = ", ".join(f"{k}={v}" for k, v in app.selector.items())
            raise Failed(
                ErrorCode.NODE_UNAVAILABLE, f"{e.node} does not have the labels that the run asks for ({wanted})"
            )
        call: ClientAppCallable
        try:
            call = self._insist(lambda: self.apps.load(self.relay, app))
        except AppUnavailable as error:
            failed = Failed(ErrorCode.LOAD_CLIENT_APP_EXCEPTION, str(error), error.traceback)
            if not self.imposed:
                raise failed from error
            # What the app's code says while it is loaded goes through the mods as well.
            call = _failing(failed.error)
        context, before = self._context(claimed, app)
        message = self._message(instruction)
        trace: str | None = None
        try:
            app_started()
            answer = self.imposed.answer(call, message, context) if self.imposed else call(message, context)
        except SystemExit as error:
            trace = traceback.format_exc()
            raise Failed(
                ErrorCode.CLIENT_APP_RAISED_EXCEPTION, f"the ClientApp called sys.exit({error.code!r})", trace
            ) from error
        except Exception as error:
            return Reply.of_error(error_of(error))
        if answer.has_error():
            return Reply.of_error(answer.error)
        return self._reply(answer.content, context.state, instruction, before)

    def _context(self, claimed: Claimed, app: AppInfo) -> tuple[Context, bytes]:
        """The Context that the previous message left, or a new one; and its state as it is on the server."""
        e, version = self.errand, claimed.context
        state, before = RecordDict(), b""
        try:
            run_config = decode_user_config(app.config) if app.config else {}
            if version is not None:
                wanted = referenced(version.data)
                state, before = decode(version.data, self._arrays(wanted, own=True), verified=True), version.data
        except WireError as error:
            raise Failed(
                ErrorCode.UNDECODABLE_PAYLOAD, f"the Context of run {e.run} at {e.node} cannot be read: {error}"
            ) from error
        context = Context(
            run_id=e.run, node_id=e.node, node_config=dict(self.settings.config), state=state, run_config=run_config
        )
        return context, before

    def _message(self, instruction: Instruction) -> Message:
        e = self.errand
        try:
            content = decode(instruction.body, self._arrays(referenced(instruction.body), own=False), verified=True)
        except WireError as error:
            raise Failed(
                ErrorCode.UNDECODABLE_PAYLOAD,
                f"{e.node} cannot read message {e.message[:8]} of run {e.run}: {error} "
                "(do both sides run the same version of fedq?)",
            ) from error
        return make_request(instruction, content, e.node)

    def _arrays(self, wanted: Mapping[str, int], *, own: bool) -> dict[str, Any]:
        """Arrays by digest: from the cache on disk, else from the server."""
        if not wanted:
            return {}
        found: dict[str, Any] = dict(self.cache.get_many(wanted))
        missing = [digest for digest in wanted if digest not in found]
        if missing:
            self.cache.make_room(wanted[digest] for digest in missing)
            try:
                if own:
                    fetched = self._insist(
                        lambda: objects.fetch_node(self.relay, self.errand.node, missing, self.cache.place)
                    )
                else:
                    fetched = self._insist(lambda: objects.fetch_shared(self.relay, missing, self.cache.place))
            except (ObjectMissing, ObjectCorrupt) as error:
                raise Failed(ErrorCode.UNDECODABLE_PAYLOAD, f"an array could not be fetched: {error}") from error
            self._fetched.update(fetched)
            found.update(fetched)
        return found

    def _reply(self, content: RecordDict, state: RecordDict, instruction: Instruction, before: bytes) -> Reply:
        """Encode what the app returned and what it left in its Context."""
        try:
            answer = encode(content, inline_limit=objects.INLINE_LIMIT)
        except AppError as error:
            raise Failed(ErrorCode.INVALID_REPLY, f"the ClientApp's reply cannot be sent: {error}") from error
        try:
            kept = encode(state, inline_limit=objects.INLINE_LIMIT)
        except AppError as error:
            raise Failed(
                ErrorCode.INVALID_REPLY, f"what the ClientApp left in its Context cannot be stored: {error}"
            ) from error
        asked = set(instruction.objects)
        blobs = {digest: blob for digest, blob in answer.blobs.items() if digest not in asked}
        changed = kept.data != before and (len(state) > 0 or bool(before))
        if changed:
            blobs.update(kept.blobs)
        return Reply(
            True,
            answer.data,
            tuple(answer.blobs),
            (kept.data, tuple(kept.blobs)) if changed else None,
            blobs=blobs,
            nbytes=_size(answer),
        )

    # -- the commit ----------------------------------------------------------------------------------------------------

    def _commit(self, reply: Reply, claimed: Claimed) -> str:
        """Upload and commit until the server says what became of it. One or two words."""
        e = self.errand
        blobs = dict(reply.blobs or {})
        if not blobs and (outcome := self._commit_by_parent(reply)) not in (None, Commit.MISSING):
            return str(outcome.value).lower()
        pauses = Pauses()

        def attempt() -> claims.Committed:
            if blobs:
                objects.upload_node(self.relay, e.node, e.run, e.message, blobs)
            return claims.commit(self.relay, e.node, e.run, e.entry, e.message, e.token, **reply.committed_as())

        while True:
            try:
                committed: claims.Committed = self._insist(attempt)
            except RunOver:
                return "stopped"
            if committed.outcome is Commit.COMMITTED:
                if reply.context is not None:
                    kept = set(reply.context[1])
                    self.cache.put({digest: blob for digest, blob in blobs.items() if digest in kept})
                return "committed"
            if committed.outcome is not Commit.MISSING:
                return str(committed.outcome.value).lower()
            # What we uploaded has expired or was lost in a failover; what the request brought was lost with it.
            blobs.update({d: self._fetched[d] for d in committed.missing if d in self._fetched})
            self._wait(pauses.next())

    def _commit_by_parent(self, reply: Reply) -> Commit | None:
        """The parent's connection is there already. None: whether it has committed or not, it has to be done again."""
        data = reply.context[0] if reply.context is not None else b""
        if self._parent is None or len(reply.body) + len(data) > BY_PARENT:
            return None
        outcome = self._parent.ask(reply.committed_as())
        return None if outcome is None else Commit(outcome)

    def _insist(self, action: Callable[[], T]) -> T:
        """``action``, again with growing pauses while the server is away, full or read-only, until the deadline."""
        pauses, said = Pauses(), ""
        while True:
            try:
                return action()
            except WAITED_FOR as error:
                # Only a bound for waiting, so that this machine's clock will do; the server decides what has expired.
                if time.time() >= self._deadline:
                    raise
                if type(error).__name__ != said:
                    said = type(error).__name__
                    logger.warning(
                        "run %d, message %s: %s; trying again", self.errand.run, self.errand.message[:8], error
                    )
                self._wait(pauses.next())

    def _outcome(self, status: str, reply: Reply, claimed: Claimed, seconds: float) -> Outcome:
        e = self.errand
        settled = status == "committed"
        meta: dict[str, Any] = {
            "attempt": claimed.attempt,
            "bytes_out": reply.nbytes,
            "app_seconds": round(seconds, 4),
        }
        failure = None
        if reply.error is not None and settled:
            status = f"error {reply.code}"
            meta["error"] = f"{reply.error.name}: {reply.error.reason}"
            failure = reply.error.traceback or f"{reply.error.name}: {reply.error.reason}"
        return Outcome(
            status,
            meta,
            failure=failure,
            description=describe(e.run, e.type, e.group, e.node, claimed.attempt),
        )


def _failing(error: Error) -> ClientAppCallable:
    """Stands for an app that could not be loaded."""
    return lambda message, context: Message(error, reply_to=message)


def make_request(instruction: Instruction, content: RecordDict, node: str) -> Message:
    """The message as the app sees it: what the ServerApp sent, with the ids and times of the relay."""
    metadata = Metadata(
        run_id=instruction.run,
        message_id=instruction.message_id,
        src_node_id="",
        dst_node_id=node,
        reply_to_message_id="",
        group_id=instruction.group,
        created_at=instruction.created,
        ttl=max(0.001, instruction.deadline - instruction.created),
        message_type=instruction.type,
    )
    return make_message(metadata, content)


def _size(encoded: Encoded) -> int:
    return len(encoded.data) + sum(memoryview(blob).nbytes for blob in encoded.blobs.values())


def _signature(text: str) -> bytes | None:
    """A signature as the run hash holds it: hex."""
    if not text:
        return None
    try:
        return bytes.fromhex(text)
    except ValueError:
        return None


__all__ = ["Errand", "Execution", "make_request"]
