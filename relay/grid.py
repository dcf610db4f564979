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
from typing import Any, TypeVar

import redis

from fedq.apps.context import Context
from fedq.apps.error import Error, ErrorCode
from fedq.apps.errors import AppError, TooFewNodes, WireError
from fedq.apps.grid import JSON, Grid, OnOffline
from fedq.apps.message import Message, make_message
from fedq.apps.metadata import Metadata
from fedq.apps.recorddict import RecordDict
from fedq.apps.replies import Replies
from fedq.apps.strategy.result import Result
from fedq.apps.wire import decode, decode_error, decode_user_config, encode, encode_error, referenced
from fedq.relay import events, journal, messages, nodes, objects, runs
from fedq.relay.connection import Relay
from fedq.relay.errors import (
    NodeUnknown,
    ObjectCorrupt,
    ObjectMissing,
    RelayCorrupt,
    RelayError,
    RelayFull,
    RelayReadOnly,
    RelayUnavailable,
    RevisionLost,
    RunOver,
    RunStopped,
)
from fedq.relay.flights import Flight, Flights, forget_flights, keep_flights
from fedq.relay.journal import FREED, Replay, fenced, over
from fedq.relay.messages import Answer, Answered, Content, Outgoing, Push, Reason, text
from fedq.relay.runs import RunClaim, Step

log = logging.getLogger(__name__)
T = TypeVar("T")

KEPT_PUSHES = 8
"""With durability "none": replies of so many pushes since the last checkpoint are kept, so that an app which saves
after each round can be interrupted within one."""

READ_AHEAD = 16
"""Answers read in one round trip."""
READ_BYTES = 4 * 1024 * 1024
"""Bytes of arrays that may be handed out at once; a larger reply comes alone."""

OFFLINE_CHECK = 2.0
"""Seconds between two looks at the heartbeats of nodes that were asked with ``on_offline="fail"``."""
ROSTER_CHECK = 0.3
"""Seconds between two looks at the nodes while a ServerApp waits for more of them."""
ALIVE_CHECK = 2.0
"""Seconds without a reply after which the Grid makes sure that the run is still its own."""
PATIENCE = 900.0
"""Seconds that a checkpoint or an event waits for a server which is full."""


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
        self.relay = Relay(relay.url, home=relay.home, client_name="fedq-grid", retries=0)
        self.relay.redis.connection_pool.connection_kwargs["redis_connect_func"] = self._connected
        self.info = claim.info
        self.token = token
        self.result: Result | None = None
        self._run = claim.info.run_id
        self._checkpoint = claim.checkpoint
        self._revision = claim.revision
        self._pushes = 0
        self._events = 0
        self._empty_pulls = 0
        self._flights = Flights()
        self._answers: dict[str, Answer] = {}
        self._cursors: dict[str, str] = {}
        self._unfreed: list[str] = []
        self._lost = True
        self._approving = False
        self._offset = 0.0
        self._clock = 0.0
        self._looked = 0.0
        self._said_freed = False
        self._do(self._set_clock)
        self._clock = self._server_time()
        known = self._do(lambda: journal.read(self.relay, self._run))
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
        self.relay.close()

    # -- nodes ---------------------------------------------------------------------------------------------------------

    def get_node_ids(self, *, online: bool | None = None) -> list[str]:
        kind = "roster" if online is not False else "registered"
        found = self._replay.peek(kind)
        if found is None:
            names = self._do(lambda: self._roster(registered=online is False))
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
        while len(names := self._do(self._roster)) < minimum:
            said = f"{len(names)} of {minimum} nodes"
            if seen != len(names):
                seen = len(names)
                waiting = {"connected": seen, "wanted": minimum, "text": said}
                # Unnumbered: how often the number changes is not the app's doing.
                self._do(lambda data=waiting: events.note(  # type: ignore[misc]
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
                self._do(self._make_sure)
            time.sleep(ROSTER_CHECK if give_up is None else max(0.0, min(ROSTER_CHECK, give_up - now)))
        return names

    def _wait_for_change(self, timeout: float) -> None:
        time.sleep(min(timeout, ROSTER_CHECK))

    def _roster(self, *, registered: bool = False) -> list[str]:
        states = nodes.list_nodes(self.relay, self.info.selector)
        return sorted(state.name for state in states if registered or state.online)

    # -- push ----------------------------------------------------------------------------------------------------------

    def push_messages(self, messages: Iterable[Message], *, on_offline: OnOffline = "wait") -> list[str]:
        if on_offline not in ("wait", "fail"):
            raise ValueError(f'on_offline is "wait" or "fail", not {on_offline!r}')
        batch = list(messages)
        number = self._pushes
        outgoing, contents, blobs = self._prepare(batch, number, on_offline)
        self._flush_empty_pulls()
        self._make_room()
        if outgoing:
            pushed = self._do(lambda: self._push(number, contents, outgoing, blobs))
            self._check_revision(pushed.revision)
            for message in outgoing:
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
        ids = [message.message_id for message in outgoing]
        if on_offline == "fail":
            self._do(lambda: self._answer_for_offline(ids))
        return ids

    def _prepare(
        self, batch: Sequence[Message], number: int, on_offline: str
    ) -> tuple[list[Outgoing], list[Content], dict[str, memoryview]]:
        """Encode each content once, however many messages share it."""
        contents: list[Content] = []
        blobs: dict[str, memoryview] = {}
        by_object: dict[int, int] = {}
        by_body: dict[bytes, int] = {}
        outgoing: list[Outgoing] = []
        for index, message in enumerate(batch):
            if not isinstance(message, Message):
                raise AppError(f"push_messages takes Messages, not {type(message).__name__}", run_id=self._run)
            if not message.has_content():
                raise AppError("an instruction carries content, not an error", run_id=self._run)
            meta = message.metadata
            if not meta.dst_node_id or meta.reply_to_message_id:
                raise AppError("only instructions to nodes can be pushed, no replies", run_id=self._run)
            place = by_object.get(id(message.content))
            if place is None:
                encoded = encode(message.content, inline_limit=objects.INLINE_LIMIT)
                place = by_body.get(encoded.data)
                if place is None:
                    place = by_body[encoded.data] = len(contents)
                    nbytes = len(encoded.data) + sum(blob.nbytes for blob in encoded.blobs.values())
                    contents.append(Content(encoded.data, tuple(encoded.blobs), nbytes))
                    blobs.update(encoded.blobs)
                by_object[id(message.content)] = place
            message_id = messages.message_id(self._run, self._checkpoint, number, index, meta.dst_node_id)
            outgoing.append(
                Outgoing(
                    message_id, meta.dst_node_id, place, meta.message_type, meta.group_id, float(meta.ttl), on_offline
                )
            )
        self._check_selected({message.node for message in outgoing})
        return outgoing, contents, blobs

    def _check_selected(self, names: set[str]) -> None:
        if not self.info.selector or not names:
            return
        selected = set(self._do(lambda: self._roster(registered=True)))
        if foreign := sorted(names - selected):
            wanted = ", ".join(f"{key}={value}" for key, value in self.info.selector.items())
            raise NodeUnknown(
                f"node {foreign[0]} does not have the labels that the run was submitted for ({wanted}); "
                "send to nodes that get_node_ids() gives",
                run_id=self._run,
                node_id=foreign[0],
            )

    def _push(
        self, number: int, contents: Sequence[Content], outgoing: Sequence[Outgoing], blobs: Mapping[str, memoryview]
    ) -> messages.Pushed:
        inline = sum(len(contents[message.content].body) for message in outgoing)
        objects.check_memory(self.relay, inline, run=self._run)
        for _ in range(3):
            objects.upload_shared(self.relay, self._run, self.token, str(self._checkpoint), blobs)
            pushed = messages.push(self.relay, self._run, self.token, self._checkpoint, number, contents, outgoing)
            match pushed.outcome:
                case Push.OK:
                    return pushed
                case Push.MISSING:
                    continue
                case Push.STOPPED:
                    raise over(self._run, pushed.detail[0] if pushed.detail else "over")
                case Push.MISMATCH:
                    raise self._mismatch(number)
                case Push.UNKNOWN_NODE:
                    names = ", ".join(pushed.detail)
                    raise NodeUnknown(
                        f"no node of this name is registered: {names}; nothing was sent (get_node_ids() gives those "
                        "that are)",
                        run_id=self._run,
                        node_id=pushed.detail[0] if pushed.detail else None,
                    )
                case _:
                    raise fenced(self._run)
        raise ObjectMissing("arrays of a push vanish from the server as they are uploaded", run_id=self._run)

    def _mismatch(self, number: int) -> RelayError:
        from fedq.relay.errors import JournalMismatch

        return JournalMismatch(
            f"push {number} after checkpoint {self._checkpoint} differs from what this ServerApp pushed there before "
            "it was interrupted; a ServerApp has to do the same again up to that point: seed what is random, and save "
            "what depends on the time of day in the Context",
            run_id=self._run,
        )

    def _answer_for_offline(self, ids: Iterable[str]) -> None:
        """Answer those of ``ids`` that were to fail when their node is offline, and whose node is."""
        waiting = [self._flights[m] for m in ids if m in self._flights and not self._flights.arrived(m)]
        waiting = [flight for flight in waiting if flight.on_offline == "fail"]
        alive = nodes.online(self.relay, sorted({flight.node for flight in waiting}))
        for flight in waiting:
            if not alive[flight.node]:
                error = Error(ErrorCode.NODE_UNAVAILABLE, f"node {flight.node} is offline")
                self._answer(flight, Reason.OFFLINE, error)

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
        if timeout is not None or min_replies is not None:
            self._tick()
        return super().stream(
            messages,
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
        return self._messages([m for m in ids if m in chosen or self._flights.given(m)])

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
        self._do(lambda: self._look(ids))
        found = self._flights.fresh(ids)
        if not found:
            self._empty_pulls += 1
            return []
        self._record("pull", f"{self._empty_pulls}|{' '.join(found)}")
        self._replay.advance("pull")
        self._empty_pulls = 0
        return found

    def _flush_empty_pulls(self) -> None:
        """Note the pulls that gave nothing, before the app does something else because of them."""
        if self._empty_pulls and self._replay.peek("pull") is None:
            self._record("pull", f"{self._empty_pulls}|")
            self._replay.advance("pull")
            self._empty_pulls = 0

    def cancel(self, message_ids: Iterable[str]) -> None:
        waiting = [m for m in dict.fromkeys(message_ids) if m in self._flights and not self._flights.arrived(m)]
        for m in waiting:
            error = Error(ErrorCode.CANCELLED, "the ServerApp cancelled the message")
            self._do(lambda m=m, error=error: self._answer(self._flights[m], Reason.CANCELLED, error))  # type: ignore[misc]

    def _receive(self, message_ids: Sequence[str], timeout: float | None) -> list[Message]:
        until = None if timeout is None else self._clock + timeout
        noted = self._replay.peek("receive")
        if noted is not None:
            at, _, chosen = noted.partition("|")
            ids = chosen.split()
            if set(ids) <= set(message_ids):
                self._replay.advance("receive")
                self._clock = float(at)
                return self._messages(ids)
            log.warning("run %d: the ServerApp waits for other replies than before its interruption", self._run)
            self._replay.leave("receive")
        for m in message_ids:
            if m not in self._flights:
                raise AppError(
                    f"no reply will come to message {m!r}: it is not of this run, or was freed", run_id=self._run
                )
        if again := [m for m in message_ids if self._flights.given(m)]:
            return self._messages(again[:1])
        ready = self._do(lambda: self._wait(message_ids, until))
        noted = self._record("receive", f"{self._server_time():.6f}|{' '.join(ready)}")
        self._replay.advance("receive")
        self._clock = float(noted.partition("|")[0])
        return self._messages(ready)

    def _wait(self, ids: Sequence[str], until: float | None) -> list[str]:
        """Wait until one of ``ids`` has arrived; the next to be given out. Empty at ``until`` (server time)."""
        quiet = time.monotonic() + ALIVE_CHECK
        while not (found := self._flights.fresh(ids)):
            now = self._server_time()
            waiting = [self._flights[m] for m in ids]
            ends = [flight.deadline for flight in waiting if not self._flights.arrived(flight.message_id)]
            if until is not None:
                if now >= until:
                    return []
                ends.append(until)
            if any(flight.on_offline == "fail" for flight in waiting):
                ends.append(now + OFFLINE_CHECK)
            self._look(ids, block=max(0.001, min([*ends, now + ALIVE_CHECK]) - now + 0.001))
            if time.monotonic() >= quiet:
                quiet = time.monotonic() + ALIVE_CHECK
                self._make_sure()
        return self._batch(found)

    def _batch(self, found: Sequence[str]) -> list[str]:
        """As many of ``found``, in their order, as may be in memory at once; their answers are read."""
        ahead = found[:READ_AHEAD]
        self._read_answers(ahead)
        chosen: list[str] = []
        total = 0
        for m in ahead:
            if m not in self._answers:
                continue
            total += self._answers[m].nbytes
            if chosen and total > READ_BYTES:
                break
            chosen.append(m)
        if not chosen:
            raise RelayCorrupt(f"the answer to message {ahead[0]} is announced, but not there", run_id=self._run)
        return chosen

    def _look(self, ids: Sequence[str], *, block: float | None = None) -> None:
        """Take in the pointers that have come for the nodes of ``ids``; answer what nobody will answer any more."""
        now = self._server_time()
        waiting = [self._flights[m] for m in ids if not self._flights.arrived(m)]
        for flight in waiting:
            if flight.deadline <= now:
                error = Error(ErrorCode.MESSAGE_EXPIRED, f"no answer of {flight.node} within the message's TTL")
                if self._answer(flight, Reason.EXPIRED, error) is Answered.NOT_SO:
                    self._set_clock()
                block = None
        if any(flight.on_offline == "fail" for flight in waiting) and time.monotonic() >= self._looked + OFFLINE_CHECK:
            self._looked = time.monotonic()
            self._answer_for_offline([flight.message_id for flight in waiting])
        streams = {
            self.relay.keys.replies(node, self._run): self._cursors.get(node, "0-0")
            for node in sorted({flight.node for flight in waiting})
        }
        if not streams:
            return
        by_stream = {self.relay.keys.replies(flight.node, self._run): flight.node for flight in waiting}
        with self.relay.errors():
            wait = self.relay.block(block * 1000) if block else None
            raw: Any = self.relay.redis.xread(streams, count=500, block=wait)  # type: ignore[arg-type]
        for stream, entries in raw or ():
            node = by_stream[text(stream)]
            for entry, fields in entries:
                self._cursors[node] = text(entry)
                self._flights.arrive(text(fields[b"m"]))

    def _answer(self, flight: Flight, reason: Reason, error: Error) -> Answered:
        entry = flight.entry or self._entry(flight)
        if not entry:
            self._give_up(flight)
            return Answered.GONE
        outcome = messages.answer(
            self.relay, self._run, flight.node, entry, flight.message_id, reason, error, token=self.token
        )
        if outcome is Answered.FENCED:
            raise fenced(self._run)
        if outcome is Answered.RUN_OVER:
            self._make_sure()
        if outcome is Answered.GONE:
            self._give_up(flight)
        return outcome

    def _give_up(self, flight: Flight) -> None:
        """Neither an instruction nor an answer is there: nobody will answer, so the Grid does, to itself."""
        found = messages.read_answers(self.relay, [(flight.node, flight.message_id)])
        error = Error(
            ErrorCode.MESSAGE_UNAVAILABLE, f"the message is no longer in the inbox of {flight.node}; was it removed?"
        )
        self._answers[flight.message_id] = found.get(flight.message_id) or Answer(
            message_id=flight.message_id,
            node=flight.node,
            run=self._run,
            ok=False,
            body=encode_error(error),
            objects=(),
            own=(),
            seq=0,
            code=int(error.code),
            attempt=0,
            nbytes=0,
            created=self._server_time(),
        )
        self._flights.arrive(flight.message_id)

    def _entry(self, flight: Flight) -> str:
        with self.relay.errors():
            raw: Any = self.relay.redis.hget(self.relay.keys.sent(self._run), flight.message_id)
        if raw is None:
            return ""
        flight.entry = messages.parse_sent(flight.message_id, text(raw)).entry
        return flight.entry

    # -- replies as messages -------------------------------------------------------------------------------------------

    def _messages(self, ids: Sequence[str]) -> list[Message]:
        self._do(lambda: self._read_answers(ids))
        made: list[Message] = []
        for m in ids:
            answer = self._answers.pop(m, None)
            if answer is None:  # freed meanwhile
                continue
            self._flights.give(m)
            made.append(self._do(lambda answer=answer: self._message(answer)))  # type: ignore[misc]
        return made

    def _read_answers(self, ids: Sequence[str]) -> None:
        wanted = [(self._flights[m].node, m) for m in ids if m not in self._answers and m in self._flights]
        self._answers.update(messages.read_answers(self.relay, wanted))

    def _message(self, answer: Answer) -> Message:
        flight = self._flights[answer.message_id]
        metadata = Metadata(
            run_id=self._run,
            message_id=f"{answer.message_id}-reply",
            src_node_id=flight.node,
            dst_node_id="",
            reply_to_message_id=answer.message_id,
            group_id=flight.group,
            created_at=answer.created,
            ttl=max(0.001, flight.deadline - answer.created),
            message_type=flight.type,
        )
        try:
            if not answer.ok:
                return make_message(metadata, error=decode_error(answer.body))
            return make_message(metadata, decode(answer.body, self._arrays(answer)))
        except WireError as error:
            what = Error(ErrorCode.UNDECODABLE_PAYLOAD, f"the reply of {flight.node} cannot be read: {error}")
        except (ObjectMissing, ObjectCorrupt) as error:
            what = Error(
                ErrorCode.REPLY_MESSAGE_UNAVAILABLE, f"an array of {flight.node}'s reply cannot be fetched: {error}"
            )
        return make_message(metadata, error=what)

    def _arrays(self, answer: Answer) -> dict[str, bytearray]:
        wanted = referenced(answer.body)
        own = set(answer.own)
        if foreign := set(wanted) - set(answer.objects):
            raise WireError(f"it names arrays that it did not announce ({sorted(foreign)[0][:12]}…)")
        found = objects.fetch_node(self.relay, answer.node, [d for d in wanted if d in own])
        found.update(objects.fetch_shared(self.relay, [d for d in wanted if d not in own]))
        return found

    # -- events, result, checkpoint ------------------------------------------------------------------------------------

    def emit(self, kind: str, data: Mapping[str, JSON]) -> None:
        self._flush_empty_pulls()
        try:
            plain = json.loads(json.dumps(_finite(dict(data))))
        except (TypeError, ValueError) as error:
            raise AppError(f"the event {kind!r} holds what JSON cannot: {error}", run_id=self._run) from error
        number = self._events + 1
        outcome = self._do(
            lambda: runs.emit(self.relay, self._run, self.token, self._checkpoint, number, kind, plain), drains=True
        )
        self._events = number
        if outcome is Step.FENCED:
            raise fenced(self._run)
        if outcome is Step.OVER:
            self._do(self._make_sure)

    def publish(self, result: Result) -> None:
        self.result = result

    def save(self, context: Context, folded: Iterable[str] | None = None) -> None:
        """Write a checkpoint; what ``context.save()`` calls. Returns when it is written."""
        chosen = self._flights.all_given() if folded is None else list(dict.fromkeys(folded))
        free = [m for m in dict.fromkeys([*self._unfreed, *chosen]) if m in self._flights]
        state = keep_flights(context.state, self._flights, without=free)
        encoded = encode(state, inline_limit=objects.INLINE_LIMIT)
        saved = self._do(lambda: self._save(encoded.data, encoded.blobs, free), drains=True)
        self._check_revision(saved.revision)
        self._checkpoint = saved.checkpoint
        self._pushes = self._events = self._empty_pulls = 0
        self._replay.clear()
        self._free(free)

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
                    self._make_sure()
            break
        self._make_sure()
        raise fenced(self._run)

    def _free(self, ids: Sequence[str]) -> None:
        """Free answered messages; what is not answered yet is tried again behind the next checkpoint."""
        self._do(lambda: runs.free(self.relay, self._run, self.token, ids))
        left = [m for m in ids if m in self._flights and not self._flights.arrived(m)]
        if left:
            still = self._do(lambda: messages.outstanding(self.relay, self._run))
            left = [m for m in left if m in still]
        self._unfreed = left
        for m in ids:
            if m not in left:
                self._flights.drop(m)
                self._answers.pop(m, None)

    def _make_room(self) -> None:
        """An app that never saves must not fill the server: free the replies that it pulled some pushes ago."""
        if self.info.durability == "replay" or self._pushes < KEPT_PUSHES:
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

    # -- the relay -----------------------------------------------------------------------------------------------------

    def _do(self, action: Callable[[], T], *, drains: bool = False) -> T:
        """``action``, as often as it takes while the server is away (or, for what ``drains``, full)."""
        pause = 0.05
        give_up = time.monotonic() + PATIENCE
        said = False
        while True:
            try:
                if self._lost:
                    self._recover()
                return action()
            except RelayUnavailable as error:
                self._lost, reason = True, error
            except RunOver as error:
                if not isinstance(error, RunStopped):
                    self._make_sure()  # knows how it ended
                raise
            except (RelayFull, RelayReadOnly) as error:
                if isinstance(error, RelayFull) and (not drains or time.monotonic() >= give_up):
                    raise
                reason = error  # type: ignore[assignment]
            if pause > 0.05 and not said:
                said = True
                log.warning("%s; waiting for it", reason)
            time.sleep(pause)
            pause = min(2.0, pause * 2)

    def _connected(self, connection: Any) -> None:
        """Called for each new connection: it is used only after a look at what the server still knows.

        redis-py replaces an idle connection that was closed without a word, and the server behind the new one may have
        forgotten writes that the one behind the old had acknowledged.
        """
        connection.on_connect()
        if not self._approving:
            raise redis.exceptions.ConnectionError("the connection was renewed")

    def _recover(self) -> None:
        """On a new connection: is the run still ours, has the server forgotten anything, what was answered?"""
        self._approving = True
        try:
            self._make_sure()
            self._set_clock()
            self._cursors.clear()
            self._look_up()
        finally:
            self._approving = False
        self._lost = False

    def _make_sure(self) -> None:
        """Raise Fenced, RunOver or RevisionLost if this attempt is over."""
        with self.relay.errors():
            raw: Any = self.relay.redis.hmget(self.relay.keys.run(self._run), ["status", "token", "rev"])
        status, token, revision = (text(value or b"") for value in raw)
        if status not in runs.OPEN:
            raise over(self._run, status or "gone")
        if token != self.token:
            raise fenced(self._run)
        self._check_revision(int(revision or 0))

    def _check_revision(self, revision: int) -> None:
        if revision < self._revision:
            raise RevisionLost(
                f"the server has lost the last writes of run {self._run} (revision {revision} after {self._revision}); "
                "the run goes on from its last checkpoint",
                run_id=self._run,
            )
        self._revision = revision

    def _look_up(self) -> None:
        """The answers of everything in ``sent``, whatever the cursors say."""
        sent = messages.outstanding(self.relay, self._run)
        for m, item in sent.items():
            if m not in self._flights:
                self._flights.add(
                    Flight(m, item.node, "", "", push=0, deadline=item.deadline, on_offline=item.on_offline)
                )
            self._flights[m].entry = item.entry
            self._flights[m].deadline = item.deadline
        waiting = [m for m in sent if not self._flights.arrived(m)]
        if not waiting:
            return
        with self.relay.errors(), self.relay.redis.pipeline(transaction=False) as pipe:
            for m in waiting:
                pipe.hmget(self.relay.keys.out(sent[m].node, m), ["created", "ptr"])
            raw: list[Any] = pipe.execute()
        there = [
            (int(created), text(pointer), m) for m, (created, pointer) in zip(waiting, raw, strict=True) if pointer
        ]
        for *_, m in sorted(there):
            self._flights.arrive(m)

    def _open_context(self, claim: RunClaim) -> Context:
        config = decode_user_config(self.info.config) if self.info.config else {}
        state = RecordDict()
        version = claim.context
        if version is not None:
            arrays = self._do(lambda: objects.fetch_shared(self.relay, referenced(version.data)))
            state = decode(version.data, arrays)
            forget_flights(state, self._flights)
        context = Context(run_id=self._run, node_id="", node_config={}, state=state, run_config=config)
        context._saver = self.save
        return context

    def _record(self, kind: str, value: str, *, numbered: bool = True) -> str:
        name = self._replay.name(kind) if numbered else kind
        return self._do(
            lambda: journal.record(self.relay, self._run, self.token, self._checkpoint, name, value), drains=True
        )

    # -- the clock -----------------------------------------------------------------------------------------------------

    def _now(self) -> float:
        return self._clock

    def _tick(self) -> None:
        noted = self._replay.peek("clock")
        if noted is None:
            noted = self._record("clock", f"{self._server_time():.6f}")
        self._replay.advance("clock")
        self._clock = float(noted)

    def _server_time(self) -> float:
        return time.monotonic() + self._offset

    def _set_clock(self) -> None:
        before = time.monotonic()
        now = self.relay.now()
        self._offset = now - (before + time.monotonic()) / 2


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
