"""The Grid of a deployed ServerApp: messages, replies, checkpoints and events on the relay.

What a call returned that could differ the second time (roster, replies and their order, the clock) is noted in the
run's journal before the app sees it, and told again to a ServerApp that runs again from the same checkpoint. The clock
of the Grid stands still between calls, so that deadlines come out the same as well.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar, overload

from fedq.apps.context import Context
from fedq.apps.error import Error, ErrorCode
from fedq.apps.errors import AppError, TooFewNodes
from fedq.apps.grid import JSON, Grid, OnOffline
from fedq.apps.message import Message
from fedq.apps.recorddict import RecordDict
from fedq.apps.replies import Replies
from fedq.apps.strategy.result import Result
from fedq.apps.wire import decode, decode_user_config, encode, referenced
from fedq.relay import events, journal, messages, nodes, objects, runs
from fedq.relay.arrivals import ALIVE_CHECK, Arrivals
from fedq.relay.attempt import Attempt
from fedq.relay.connection import Relay
from fedq.relay.departures import Departures
from fedq.relay.flights import Flight, Flights, forget_flights, keep_flights
from fedq.relay.held import HeldArrays
from fedq.relay.journal import FREED, Replay, fenced
from fedq.relay.messages import Reason
from fedq.relay.runs import RunClaim, Step

log = logging.getLogger(__name__)
T = TypeVar("T")

KEPT_PUSHES = 8
"""With durability "none": replies of so many pushes since the last checkpoint are kept, so that an app which saves
after each round can be interrupted within one."""

ROSTER_CHECK = 0.3
"""Seconds between two looks at the nodes while a ServerApp waits for more of them."""


class RedisGrid(Grid):
    """The Grid of one attempt of a run's ServerApp. Not for use by several threads at once.

    Every method raises Fenced when another attempt holds the run, RunStopped or RunOver when the run has ended, and
    RevisionLost when the server has lost writes that it had acknowledged: each ends this attempt. A server that is away
    is waited for.

    Args:
        relay: where the run is. The Grid opens connections of its own, and approves each new one, so that none is lost
            without its notice; :meth:`close` closes them.
        claim: what :func:`fedq.relay.runs.claim_run` gave, with outcome OK.
        token: the token it was claimed with.
    """

    def __init__(self, relay: Relay, claim: RunClaim, token: str) -> None:
        assert claim.info is not None
        self.info = claim.info
        self.token = token
        self.result: Result | None = None
        self._run = claim.info.run_id
        self._attempt = Attempt(relay, self._run, token, claim.revision, on_renewed=self._renewed)
        self.relay = self._attempt.relay
        self._flights = Flights()
        self._held = HeldArrays()
        self._outbound = Departures(self._attempt, self.info, self._held)
        self._inbound = Arrivals(self._attempt, self._flights, self._held)
        self._checkpoint = claim.checkpoint
        self._pushes = 0
        self._events = 0
        self._empty_pulls = 0
        self._unfreed: list[str] = []
        self._said_freed = False
        known = self._attempt.do(lambda: journal.read(self.relay, self._run))
        self._clock = self._attempt.server_time()
        self._replay = Replay(known)
        self.replayable = FREED not in known
        """False if answers of the time since the checkpoint are gone, so that the app cannot run again from there."""
        self._context = self._open_context(claim)
        if claim.context is not None and claim.context.free:
            self._free(claim.context.free)

    # -- what it is ----------------------------------------------------------------------------------------------------

    @property
    def run_id(self) -> int:
        return self._run

    @property
    def context(self) -> Context:
        return self._context

    @property
    def checkpoint(self) -> int:
        """How many checkpoints the run has."""
        return self._checkpoint

    def close(self) -> None:
        """Close its connections."""
        self._attempt.close()

    def _renewed(self) -> None:
        self._inbound.look_up()

    # -- nodes ---------------------------------------------------------------------------------------------------------

    def get_node_ids(self, *, online: bool | None = None) -> list[str]:
        kind = "roster" if online is not False else "registered"
        found = self._replay.peek(kind)
        if found is None:
            names = self._attempt.do(lambda: self._roster(registered=online is False))
            found = self._record(kind, " ".join(names))
        self._replay.advance(kind)
        return found.split()

    def wait_for_nodes(self, minimum: int, *, timeout: float | None = None) -> list[str]:
        found = self._replay.peek("wait")
        if found is None:
            found = self._record("wait", " ".join(self._wait_for_nodes(minimum, timeout)))
        self._replay.advance("wait")
        return found.split()

    def _wait_for_nodes(self, minimum: int, timeout: float | None) -> list[str]:
        give_up = None if timeout is None else time.monotonic() + timeout
        seen: int | None = None
        alive = time.monotonic() + ALIVE_CHECK
        while len(names := self._attempt.do(self._roster)) < minimum:
            said = f"{len(names)} of {minimum} nodes"
            if seen != len(names):
                seen = len(names)
                waiting = {"connected": seen, "wanted": minimum, "text": said}
                # Unnumbered: how often the number changes is not the app's doing.
                self._attempt.do(lambda data=waiting: events.note(  # type: ignore[misc]
                    self.relay, self._run, self.token, [("waiting-for-nodes", data)]
                ))  # fmt: skip
            now = time.monotonic()
            if give_up is not None and now >= give_up:
                selector = ", ".join(f"{key}={value}" for key, value in self.info.selector.items())
                raise TooFewNodes(
                    f"{said} connected after {timeout:g} s"
                    f"{f' with the labels that the run asks for ({selector})' if selector else ''}; start more "
                    "SuperNodes, widen the run's node selector, or lower the minimum that the ServerApp asks for",
                    run_id=self._run,
                )
            if now >= alive:
                alive = now + ALIVE_CHECK
                self._attempt.do(self._attempt.make_sure)
            time.sleep(ROSTER_CHECK if give_up is None else max(0.0, min(ROSTER_CHECK, give_up - now)))
        return names

    def _wait_for_change(self, timeout: float) -> None:
        time.sleep(min(timeout, ROSTER_CHECK))

    def _roster(self, *, registered: bool = False) -> list[str]:
        return nodes.roster(self.relay, self.info.selector, registered=registered)

    # -- push ----------------------------------------------------------------------------------------------------------

    def push_messages(self, messages: Iterable[Message], *, on_offline: OnOffline = "wait") -> list[str]:
        if on_offline not in ("wait", "fail"):
            raise ValueError(f'on_offline is "wait" or "fail", not {on_offline!r}')
        batch = list(messages)
        number = self._pushes
        load = self._outbound.load(batch, self._checkpoint, number, on_offline)
        self._flush_empty_pulls()
        self._make_room()
        if load.outgoing:
            pushed = self._outbound.send(load)
            self._attempt.check_revision(pushed.revision)
            self._clock = pushed.began
            self._attempt.saw(pushed.created)  # what the wait for replies is measured with is the same clock
            for message in load.outgoing:
                self._flights.add(
                    Flight(
                        message.message_id,
                        message.node,
                        message.type,
                        message.group,
                        push=number,
                        deadline=pushed.created + message.ttl,
                        on_offline=on_offline,
                    )
                )
        self._pushes += 1
        ids = [message.message_id for message in load.outgoing]
        if on_offline == "fail":
            self._attempt.do(lambda: self._inbound.answer_for_offline(ids))
        return ids

    # -- what comes back -----------------------------------------------------------------------------------------------

    def stream(
        self,
        messages: Iterable[Message] | None = None,
        *,
        message_ids: Iterable[str] | None = None,
        timeout: float | None = None,
        min_replies: int | None = None,
        grace: float = 0.0,
        on_offline: OnOffline = "wait",
    ) -> Replies:
        batch = None if messages is None else list(messages)
        if not batch and (timeout is not None or min_replies is not None):
            self._tick()  # with messages the clock is that of their push
        return super().stream(
            batch,
            message_ids=message_ids,
            timeout=timeout,
            min_replies=min_replies,
            grace=grace,
            on_offline=on_offline,
        )

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        ids = list(dict.fromkeys(message_ids))
        new = [m for m in ids if m in self._flights and not self._flights.given(m)]
        chosen = set(self._newly_pulled(new)) if new else set()
        return self._inbound.take([m for m in ids if m in chosen or self._flights.given(m)])

    def _newly_pulled(self, ids: Sequence[str]) -> list[str]:
        """Those of ``ids`` whose reply is there and was not given out before."""
        while (noted := self._replay.peek("pull")) is not None:
            empty, _, chosen = noted.partition("|")
            if self._empty_pulls < int(empty):
                self._empty_pulls += 1
                return []
            self._replay.advance("pull")
            self._empty_pulls = 0
            if chosen:
                return [m for m in chosen.split() if m in set(ids)]

        def look() -> str | None:
            self._inbound.look(ids)
            found = self._flights.fresh(ids)
            return f"{self._empty_pulls}|{' '.join(found)}" if found else None

        noted = self._record("pull", look)
        if noted is None:
            self._empty_pulls += 1
            return []
        self._replay.advance("pull")
        self._empty_pulls = 0
        return noted.partition("|")[2].split()

    def _flush_empty_pulls(self) -> None:
        """Note the pulls that gave nothing, before the app does something else because of them."""
        if self._empty_pulls and self._replay.peek("pull") is None:
            self._record("pull", f"{self._empty_pulls}|")
            self._replay.advance("pull")
            self._empty_pulls = 0

    def cancel(self, message_ids: Iterable[str]) -> None:
        for flight in self._flights.awaited(dict.fromkeys(message_ids)):
            error = Error(ErrorCode.CANCELLED, "the ServerApp cancelled the message")
            self._attempt.do(lambda flight=flight, error=error: self._inbound.answer(flight, Reason.CANCELLED, error))  # type: ignore[misc]

    def _receive(self, message_ids: Sequence[str], timeout: float | None) -> list[Message]:
        # Before the journal: replies that were received before the checkpoint were not noted behind it, and came first.
        wanted = set(message_ids)
        if (again := self._flights.first_given(wanted)) is not None:
            return self._inbound.take([again])
        until = None if timeout is None else self._clock + timeout
        noted = self._replay.peek("receive")
        if noted is not None:
            at, _, chosen = noted.partition("|")
            ids = chosen.split()
            if set(ids) <= wanted:
                self._replay.advance("receive")
                self._clock = float(at)
                return self._inbound.take(ids)
            log.warning("run %d: the ServerApp waits for other replies than before its interruption", self._run)
            self._replay.leave("receive")
        if unknown := self._flights.unknown(wanted):
            raise AppError(
                f"no reply will come to message {min(unknown)!r}: it is not of this run, or was freed",
                run_id=self._run,
            )

        name = self._replay.name("receive")

        def wait() -> journal.Noted:
            ready = self._inbound.wait(message_ids, until)
            value = f"{self._attempt.server_time():.6f}|{' '.join(ready)}"
            unread = self._inbound.unread(ready)
            noted, found = journal.record_and_read(
                self.relay, self._run, self.token, self._checkpoint, name, value, list(unread.values())
            )
            self._inbound.read(dict(zip(unread, found, strict=True)))
            return noted

        at, _, chosen = self._noted(wait).partition("|")
        self._replay.advance("receive")
        self._clock = float(at)
        return self._inbound.take(chosen.split())

    # -- events, result, checkpoint ------------------------------------------------------------------------------------

    def emit(self, kind: str, data: Mapping[str, JSON]) -> None:
        self._flush_empty_pulls()
        try:
            plain = json.loads(json.dumps(_finite(dict(data))))
        except (TypeError, ValueError) as error:
            raise AppError(f"the event {kind!r} holds what JSON cannot: {error}", run_id=self._run) from error
        number = self._events + 1
        emitted = self._attempt.do(
            lambda: events.emit(self.relay, self._run, self.token, self._checkpoint, number, kind, plain), drains=True
        )
        self._events = number
        if emitted.outcome is Step.FENCED:
            raise fenced(self._run)
        if emitted.outcome is Step.OVER:
            self._attempt.do(self._attempt.make_sure)
        else:
            self._attempt.check_revision(emitted.revision)

    def publish(self, result: Result) -> None:
        self.result = result

    def save(self, context: Context, folded: Iterable[str] | None = None) -> None:
        """Write a checkpoint; what ``context.save()`` calls. Returns when it is written."""
        chosen = self._flights.all_given() if folded is None else list(dict.fromkeys(folded))
        free = [m for m in dict.fromkeys([*self._unfreed, *chosen]) if m in self._flights]
        state = keep_flights(context.state, self._flights, without=free)
        encoded = encode(state, inline_limit=objects.INLINE_LIMIT)
        saved = self._attempt.do(lambda: self._save(encoded.data, encoded.blobs, free), drains=True)
        self._attempt.check_revision(saved.revision)
        self._checkpoint = saved.checkpoint
        self._pushes = self._events = self._empty_pulls = 0
        self._replay.clear()
        self._free(free, done=saved.freed)

    def _save(self, data: bytes, blobs: Mapping[str, memoryview], free: Sequence[str]) -> runs.Saved:
        for _ in range(3):
            objects.upload_shared(
                self.relay, self._run, self.token, f"ctx{self._checkpoint + 1}", blobs, guard=False
            )  # fmt: skip
            saved = runs.save_checkpoint(
                self.relay, self._run, self.token, self._checkpoint, (data, tuple(blobs)), free
            )
            match saved.outcome:
                case Step.OK:
                    return saved
                case Step.MISSING:
                    continue
                case Step.STOPPED:
                    self._attempt.make_sure()
            break
        self._attempt.make_sure()
        raise fenced(self._run)

    def _free(self, ids: Sequence[str], *, done: int = 0) -> None:
        """Free answered messages, the first ``done`` of which are freed already; what is not answered yet is tried
        again behind the next checkpoint."""
        if len(ids) > done:
            self._attempt.do(lambda: runs.free(self.relay, self._run, self.token, ids[done:]))
        left = [flight.message_id for flight in self._flights.awaited(ids)]
        if left:
            still = self._attempt.do(lambda: messages.outstanding(self.relay, self._run))
            left = [m for m in left if m in still]
        self._unfreed = left
        for m in ids:
            if m not in left:
                self._flights.drop(m)
                self._inbound.forget(m)

    def _make_room(self) -> None:
        """An app that never saves must not fill the server: free the replies that it pulled some pushes ago."""
        if self.keeps_replies or self.info.durability == "replay" or self._pushes < KEPT_PUSHES:
            return
        old = [m for m in self._flights.all_given() if self._flights[m].push <= self._pushes - KEPT_PUSHES]
        if not old:
            return
        if not self._said_freed:
            self._said_freed = True
            self._record(FREED, "1", numbered=False)
            log.warning(
                "this ServerApp has pushed %d times without saving: replies that it pulled are freed from now on, and "
                'it could not go on after an interruption; call context.save(), or submit with durability="replay"',
                self._pushes,
            )
        self._free(old)

    # -- the Context and the journal -----------------------------------------------------------------------------------

    def _open_context(self, claim: RunClaim) -> Context:
        config = decode_user_config(self.info.config) if self.info.config else {}
        state = RecordDict()
        version = claim.context
        if version is not None:
            arrays = self._attempt.do(lambda: objects.fetch_shared(self.relay, referenced(version.data)))
            state = decode(version.data, arrays, verified=True)
            self._held.remember(state)
            forget_flights(state, self._flights)
        context = Context(run_id=self._run, node_id="", node_config={}, state=state, run_config=config)
        context._saver = self.save
        return context

    @overload
    def _record(self, kind: str, value: str | Callable[[], str], *, numbered: bool = True) -> str: ...

    @overload
    def _record(self, kind: str, value: Callable[[], str | None]) -> str | None: ...

    def _record(self, kind: str, value: str | Callable[[], str | None], *, numbered: bool = True) -> str | None:
        """Note what a call returns, unless it is noted already; what stands there then. None is not noted.

        What is found out by a call is found out anew when the server was away before it was noted.
        """
        name = self._replay.name(kind) if numbered else kind

        def note() -> journal.Noted | None:
            found = value if isinstance(value, str) else value()
            if found is None:
                return None
            return journal.record(self.relay, self._run, self.token, self._checkpoint, name, found)

        return self._noted(note)

    @overload
    def _noted(self, note: Callable[[], journal.Noted]) -> str: ...

    @overload
    def _noted(self, note: Callable[[], journal.Noted | None]) -> str | None: ...

    def _noted(self, note: Callable[[], journal.Noted | None]) -> str | None:
        """Have something noted; what stands there then."""
        noted = self._attempt.do(note, drains=True)
        if noted is None:
            return None
        self._attempt.check_revision(noted.revision)
        return noted.value

    # -- the clock -----------------------------------------------------------------------------------------------------

    def _now(self) -> float:
        return self._clock

    def _tick(self) -> None:
        noted = self._replay.peek("clock")
        if noted is None:
            noted = self._record("clock", f"{self._attempt.server_time():.6f}")
        self._replay.advance("clock")
        self._clock = float(noted)


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
