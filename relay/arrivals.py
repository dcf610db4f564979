"""Replies on their way to a Grid: pointers as they come, answers, and answers for those who will give none."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fedq.apps.error import Error, ErrorCode
from fedq.apps.errors import WireError
from fedq.apps.message import Message, make_message
from fedq.apps.metadata import Metadata
from fedq.apps.wire import decode, decode_error, encode_error, referenced
from fedq.relay import messages, nodes, objects
from fedq.relay.attempt import Attempt
from fedq.relay.errors import ObjectCorrupt, ObjectMissing, RelayCorrupt
from fedq.relay.flights import Flight, Flights
from fedq.relay.held import HeldArrays
from fedq.relay.journal import fenced
from fedq.relay.messages import Answer, Answered, Reason
from fedq.relay.texts import text

READ_AHEAD = 16
"""Answers read in one round trip."""
READ_BYTES = 4 * 1024 * 1024
"""Bytes of arrays that may be handed out at once; a larger reply comes alone."""

OFFLINE_CHECK = 2.0
"""Seconds between two looks at the heartbeats of nodes that were asked with ``on_offline="fail"``."""
AFTER_OUTAGE = nodes.HEARTBEAT
"""Seconds after an outage in which no node counts as offline: its heartbeat may have run out because of the outage."""
ALIVE_CHECK = 2.0
"""Seconds without a reply after which the Grid makes sure that the run is still its own."""


class Arrivals:
    """What comes back for the flights of one attempt. It notes in ``flights`` what has arrived and what was given."""

    def __init__(self, attempt: Attempt, flights: Flights, held: HeldArrays) -> None:
        self._attempt = attempt
        self._held = held
        self._flights = flights
        self._relay = attempt.relay
        self._run = attempt.run
        self._answers: dict[str, Answer] = {}
        self._given_up: dict[str, Answer] = {}
        self._cursors: dict[str, str] = {}
        self._looked = 0.0

    # -- waiting -------------------------------------------------------------------------------------------------------

    def wait(self, ids: Sequence[str], until: float | None) -> list[str]:
        """Wait until one of ``ids`` has arrived; the next to be given out. Empty at ``until`` (server time)."""
        quiet = time.monotonic() + ALIVE_CHECK
        while not (found := self._flights.fresh(ids)):
            now = self._attempt.server_time()
            waiting = self._flights.awaited(ids)
            ends = [flight.deadline for flight in waiting]
            if until is not None:
                if now >= until:
                    return []
                ends.append(until)
            if any(flight.on_offline == "fail" for flight in waiting):
                ends.append(now + OFFLINE_CHECK)
            self._look(waiting, block=max(0.001, min([*ends, now + ALIVE_CHECK]) - now + 0.001))
            if time.monotonic() >= quiet:
                quiet = time.monotonic() + ALIVE_CHECK
                self._attempt.make_sure()
        return self._batch(found)

    def look(self, ids: Sequence[str], *, block: float | None = None) -> None:
        """Take in the pointers that have come for the nodes of ``ids``; answer what nobody will answer any more."""
        self._look(self._flights.awaited(ids), block)

    def _look(self, waiting: Sequence[Flight], block: float | None) -> None:
        now = self._attempt.server_time()
        for flight in [flight for flight in waiting if flight.deadline <= now]:
            error = Error(ErrorCode.MESSAGE_EXPIRED, f"no answer of {flight.node} within the message's TTL")
            if self.answer(flight, Reason.EXPIRED, error) is Answered.NOT_SO:
                self._attempt.set_clock()
            block = None
        if any(flight.on_offline == "fail" for flight in waiting) and time.monotonic() >= self._looked + OFFLINE_CHECK:
            self._looked = time.monotonic()
            self.answer_for_offline([flight.message_id for flight in waiting])
        by_stream = {
            self._relay.keys.replies(node, self._run): node for node in sorted({flight.node for flight in waiting})
        }
        if not by_stream:
            return
        streams = {stream: self._cursors.get(node, "0-0") for stream, node in by_stream.items()}
        with self._relay.errors():
            wait = self._relay.block(block * 1000) if block else None
            raw: Any = self._relay.redis.xread(streams, count=500, block=wait)  # type: ignore[arg-type]
        for stream, entries in raw or ():
            node = by_stream[text(stream)]
            for entry, fields in entries:
                self._cursors[node] = text(entry)
                self._flights.arrive(text(fields[b"m"]))

    def look_up(self) -> None:
        """After an outage: the answers of everything in ``sent``, whatever the cursors say.

        What has arrived and was not given counts for nothing: the server may have lost it, and its node works on the
        message again, from a Context that knows nothing of the first time.
        """
        self._cursors.clear()
        self._answers.clear()
        self._flights.rewind()
        for m in self._given_up:
            self._flights.arrive(m)
        sent = messages.outstanding(self._relay, self._run)
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
        with self._relay.errors(), self._relay.redis.pipeline(transaction=False) as pipe:
            for m in waiting:
                pipe.hmget(self._relay.keys.out(sent[m].node, m), ["created", "ptr"])
            raw: list[Any] = pipe.execute()
        there = [
            (int(created), text(pointer), m) for m, (created, pointer) in zip(waiting, raw, strict=True) if pointer
        ]
        for *_, m in sorted(there):
            self._flights.arrive(m)

    def _batch(self, found: Sequence[str]) -> list[str]:
        """As many of ``found``, in their order, as may be in memory at once; their answers are read, except for one
        that comes alone: it may be read with the note about it."""
        if len(found) == 1:
            return list(found)
        ahead = found[:READ_AHEAD]
        answers = self._read_answers(ahead)
        chosen: list[str] = []
        total = 0
        for m in ahead:
            if m not in answers:
                continue
            total += answers[m].nbytes
            if chosen and total > READ_BYTES:
                break
            chosen.append(m)
        if not chosen:
            raise self._lacking(ahead[0])
        return chosen

    def unread(self, ids: Iterable[str]) -> dict[str, str]:
        """Where the answers are of those of ``ids`` that have not been read: message to key."""
        return {m: self._relay.keys.out(self._flights[m].node, m) for m in self._unread(ids)}

    def _unread(self, ids: Iterable[str]) -> list[str]:
        return [m for m in ids if m in self._flights and m not in self._answers and m not in self._given_up]

    def read(self, found: Mapping[str, Mapping[bytes, bytes]]) -> None:
        """Take in what stood there."""
        for m, fields in found.items():
            if not fields:
                raise self._lacking(m)
            self._answers[m] = messages.parse_answer(self._flights[m].node, m, fields)

    def _lacking(self, message_id: str) -> RelayCorrupt:
        return RelayCorrupt(f"the answer to message {message_id} is announced, but not there", run_id=self._run)

    # -- answering for others ------------------------------------------------------------------------------------------

    def answer(self, flight: Flight, reason: Reason, error: Error) -> Answered:
        """Answer a message by an error, for whoever was to answer it."""
        entry = flight.entry or self._entry(flight)
        if not entry:
            self._give_up(flight)
            return Answered.GONE
        outcome = messages.answer(
            self._relay, self._run, flight.node, entry, flight.message_id, reason, error, token=self._attempt.token
        )
        if outcome is Answered.FENCED:
            raise fenced(self._run)
        if outcome is Answered.RUN_OVER:
            self._attempt.make_sure()
        if outcome is Answered.GONE:
            self._give_up(flight)
        return outcome

    def answer_for_offline(self, ids: Iterable[str]) -> None:
        """Answer those of ``ids`` that were to fail when their node is offline, and whose node is."""
        if time.monotonic() < self._attempt.interrupted_at + AFTER_OUTAGE:
            return
        waiting = [flight for flight in self._flights.awaited(ids) if flight.on_offline == "fail"]
        alive = nodes.online(self._relay, sorted({flight.node for flight in waiting}))
        for flight in waiting:
            if not alive[flight.node]:
                error = Error(ErrorCode.NODE_UNAVAILABLE, f"node {flight.node} is offline")
                self.answer(flight, Reason.OFFLINE, error)

    def _give_up(self, flight: Flight) -> None:
        """Neither an instruction nor an answer is there: nobody will answer, so the Grid does, to itself."""
        found = messages.read_answers(self._relay, [(flight.node, flight.message_id)])
        error = Error(
            ErrorCode.MESSAGE_UNAVAILABLE, f"the message is no longer in the inbox of {flight.node}; was it removed?"
        )
        self._answers.update(found)
        if not found:
            self._given_up[flight.message_id] = Answer(
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
                created=self._attempt.server_time(),
            )
        self._flights.arrive(flight.message_id)

    def _entry(self, flight: Flight) -> str:
        with self._relay.errors():
            raw: Any = self._relay.redis.hget(self._relay.keys.sent(self._run), flight.message_id)
        if raw is None:
            return ""
        flight.entry = messages.parse_sent(flight.message_id, text(raw)).entry
        return flight.entry

    # -- replies as messages -------------------------------------------------------------------------------------------

    def take(self, ids: Sequence[str]) -> list[Message]:
        """The replies to ``ids``, which have arrived. One that was freed meanwhile is left out."""
        answers = self._attempt.do(lambda: self._read_answers(ids))
        made: list[Message] = []
        for m in ids:
            self._answers.pop(m, None)
            answer = answers.get(m)
            if answer is None:
                continue
            self._flights.give(m)
            made.append(self._attempt.do(lambda answer=answer: self._message(answer)))  # type: ignore[misc]
        return made

    def forget(self, message_id: str) -> None:
        """Its answer was freed."""
        self._answers.pop(message_id, None)
        self._given_up.pop(message_id, None)

    def _read_answers(self, ids: Sequence[str]) -> dict[str, Answer]:
        """The answers of ``ids``, as far as there are any."""
        wanted = [(self._flights[m].node, m) for m in self._unread(ids)]
        self._answers.update(messages.read_answers(self._relay, wanted))
        known = self._given_up | self._answers
        return {m: known[m] for m in ids if m in known}

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
            content = decode(answer.body, self._arrays(answer), verified=True)
            self._held.remember(content)
            return make_message(metadata, content)
        except WireError as error:
            what = Error(ErrorCode.UNDECODABLE_PAYLOAD, f"the reply of {flight.node} cannot be read: {error}")
        except (ObjectMissing, ObjectCorrupt) as error:
            what = Error(
                ErrorCode.REPLY_MESSAGE_UNAVAILABLE, f"an array of {flight.node}'s reply cannot be fetched: {error}"
            )
        return make_message(metadata, error=what)

    def _arrays(self, answer: Answer) -> dict[str, memoryview]:
        wanted = referenced(answer.body)
        own = set(answer.own)
        if foreign := set(wanted) - set(answer.objects):
            raise WireError(f"it names arrays that it did not announce ({sorted(foreign)[0][:12]}…)")
        found = self._held.get(wanted)
        left = [d for d in wanted if d not in found]
        found.update(objects.fetch_node(self._relay, answer.node, [d for d in left if d in own]))
        found.update(objects.fetch_shared(self._relay, [d for d in left if d not in own]))
        return found
