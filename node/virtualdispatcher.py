"""The dispatcher of a service with virtual nodes: what waits in their inboxes becomes RQ jobs of some messages each.

The rules are those of :mod:`fedq.node.dispatcher`: the inbox entry is the truth and the job a hint, at most one message
per (run, node) is under way, in turn, and the claim decides. What differs is that one round trip serves many nodes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from fedq.node import virtual
from fedq.node.dispatcher import RECONCILE, Dispatcher
from fedq.node.inbox import Lost, Waiting
from fedq.node.jobqueue import Dispatched
from fedq.node.role import WORKER
from fedq.node.virtualinbox import Delivered, InboxesReader, Place, delete, read_all
from fedq.relay import nodes
from fedq.relay.claims import ClaimState, parse_claim
from fedq.relay.errors import RelayUnavailable
from fedq.relay.runs import OPEN
from fedq.relay.texts import text

logger = logging.getLogger(__name__)

MOST = 32
"""Messages in one job. More would save nothing that is worth waiting for."""


class VirtualDispatcher(Dispatcher):
    """Serves the virtual nodes of ``settings`` while it holds the role. Arguments as for :class:`Dispatcher`."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.nodes = virtual.VirtualNodes(self.settings)
        self._waiting: dict[Place, dict[str, Waiting]] = {}
        self._under_way: dict[Place, Dispatched] = {}
        self._beaten_at = float("-inf")

    # -- role and heartbeat --------------------------------------------------------------------------------------------

    def _reader(self) -> InboxesReader:
        return InboxesReader(self.relay, self.node, list(self.nodes), self.events.put)

    def _beat(self) -> bool:
        held = super()._beat()
        if held and self._online and self._beaten_at < self._beat_at:
            virtual.beat(self.relay, self.nodes, ttl=self._pace.ttl)
            self._beaten_at = self._beat_at
            self._skew = self.relay.now() - time.time()
        return held

    def _standby(self) -> None:
        self._under_way.clear()
        super()._standby()

    def _leave(self) -> None:
        if self.role.held:
            try:
                virtual.leave(self.relay, self.nodes)
            except RelayUnavailable as error:
                logger.info("node %s: its virtual nodes leave without telling the server: %s", self.node, error)
        super()._leave()

    def _register(self) -> None:
        if self.role.holder.kind != WORKER:
            virtual.register(self.relay, self.nodes, self.info)

    # -- what is known -------------------------------------------------------------------------------------------------

    def _sync(self) -> None:
        self._register()
        nodes.beat(self.relay, self.node, ttl=self._pace.ttl)
        virtual.beat(self.relay, self.nodes, ttl=self._pace.ttl)
        self._online = True
        self._beaten_at = self._beat_at
        self._skew = self.relay.now() - time.time()
        self._under_way.clear()
        for facts in self._facts.values():
            facts.fruitless, facts.not_before = 0, 0.0
        self._read_anew()
        self._synced = True
        self._served_since = self._clock()
        self._reconcile()
        self._dispatch()

    def _read_anew(self) -> None:
        found = read_all(self.relay, list(self.nodes))
        delete(self.relay, found.wakes)
        self._waiting.clear()
        self._untried.clear()
        self._add(found.messages)
        self._read_facts(self._runs(), drop_ended=True)

    def _add(self, messages: Iterable[tuple[str, Waiting]]) -> None:
        for node, message in messages:
            self._waiting.setdefault((message.run, node), {}).setdefault(message.message_id, message)

    def _runs(self) -> list[int]:
        return sorted({run for run, _ in self._waiting})

    def _head(self, place: Place) -> Waiting:
        return min(self._waiting[place].values(), key=lambda m: m.seq)

    def _forget_run(self, run: int) -> None:
        self._ended.add(run)
        self._facts.pop(run, None)
        for place in [place for place in self._waiting if place[0] == run]:
            del self._waiting[place]
            self._under_way.pop(place, None)

    def _serve_once(self) -> None:
        due = min(self._beat_at + self._pace.every, self._reconcile_at)
        if self._waiting:
            held_back = [facts.not_before for facts in self._facts.values() if facts.not_before > self._clock()]
            due = min([due, *held_back])
        look: set[Place] = set()
        ended: set[str] = set()
        wakes: list[tuple[str, str]] = []
        reconcile = False
        for event in self._gather(max(0.0, due - self._clock())):
            match event:
                case Delivered(messages, woken, jobs):
                    self._add(messages)
                    self._untried.update(message.message_id for _, message in messages)
                    # Nobody wakes us when the last message of a place is answered: the next one tells so.
                    look.update(
                        place for node, message in messages if (place := (message.run, node)) in self._under_way
                    )
                    wakes += woken
                    ended.update(jobs)
                case Lost(reason):
                    raise RelayUnavailable(reason)
                case None:
                    return
                case _:
                    reconcile = True
        if wakes:
            delete(self.relay, wakes)
            woken_nodes = {node for node, _ in wakes}
            look.update(place for place in self._waiting if place[1] in woken_nodes)
        if ended:
            look.update(place for place, dispatched in self._under_way.items() if dispatched.job_id in ended)
        if reconcile or self._clock() >= self._reconcile_at:
            self._reconcile()
        elif look:
            self._examine(look, ended)
        self._dispatch()

    def _reconcile(self) -> None:
        self._reconcile_at = self._clock() + RECONCILE
        self._find_resumed()
        if not self._examine(list(self._waiting), everything=True):
            self._reconcile_at = self._clock() + RECONCILE
            self._read_anew()
            self._examine(list(self._waiting), everything=True)
        runs = set(self._runs())
        self._facts = {run: facts for run, facts in self._facts.items() if run in runs}
        waiting = {message for messages in self._waiting.values() for message in messages}
        self._untried &= waiting

    def _find_resumed(self) -> None:
        if not self._ended:
            return
        ended = sorted(self._ended)
        with self.relay.errors(), self.relay.redis.pipeline(transaction=False) as pipe:
            for run in ended:
                pipe.hmget(self.relay.keys.run(run), "status", "cleaned")
            found = pipe.execute()
        resumed = {run for run, (status, _) in zip(ended, found, strict=True) if text(status or b"") in OPEN}
        gone = {run for run, (status, cleaned) in zip(ended, found, strict=True) if status is None or cleaned}
        self._ended -= resumed | gone
        if resumed:
            self._read_anew()

    def _examine(self, places: Collection[Place], ended: Collection[str] = (), *, everything: bool = False) -> bool:
        """Compare what waits in ``places`` with the server: forget what was answered, free what nobody takes care of.

        ``ended`` names jobs that do no more. ``everything`` also looks at messages for which no job of ours is known,
        but which somebody may hold. False if the server knows a message that is not known here.
        """
        complete = True
        doubtful: dict[str, list[Place]] = {}
        now = time.time() + self._skew
        known = [place for place in places if place in self._waiting]
        for some in virtual.in_batches(known):
            for place, head, held in self._look_at(some):
                if head == "":
                    del self._waiting[place]
                    self._settled(place)
                    continue
                messages = self._waiting[place]
                if head not in messages:
                    complete = False
                    continue
                first = messages[head]
                for message in [m for m, waiting in messages.items() if waiting.seq < first.seq]:
                    del messages[message]
                dispatched = self._under_way.get(place)
                if dispatched is not None and dispatched.waiting.message_id != head:
                    self._settled(place)
                    continue
                if dispatched is not None or everything:
                    self._judge(place, first, held, now, ended, doubtful)
        if doubtful:
            self._look_for_batches(doubtful)
        return complete

    def _look_at(self, places: Sequence[Place]) -> list[tuple[Place, str, ClaimState | None]]:
        """For each place the message whose turn it is ('' for none), and its claim if it is the one known here."""
        keys = self.relay.keys
        heads = [self._head(place).message_id for place in places]
        with self.relay.errors(), self.relay.redis.pipeline(transaction=False) as pipe:
            for (run, node), head in zip(places, heads, strict=True):
                pipe.zrange(keys.order(node, run), 0, 0)
                pipe.hget(keys.claims(node), head)
            found = pipe.execute()
        return [
            (place, text(turn[0]) if turn else "", parse_claim(raw) if raw and turn and text(turn[0]) == head else None)
            for place, head, turn, raw in zip(places, heads, found[::2], found[1::2], strict=True)
        ]

    def _settled(self, place: Place) -> None:
        """Its message is answered, so that jobs of the run do come to something."""
        self._under_way.pop(place, None)
        if facts := self._facts.get(place[0]):
            facts.fruitless, facts.not_before = 0, 0.0

    def _judge(
        self,
        place: Place,
        head: Waiting,
        held: ClaimState | None,
        now: float,
        ended: Collection[str],
        doubtful: dict[str, list[Place]],
    ) -> None:
        dispatched = self._under_way.get(place)
        attempt = held.attempt if held is not None else 0
        if held is not None and held.token:
            if not self._free_dead(head, held, now, node=place[1]):
                if dispatched is None:
                    self._under_way[place] = Dispatched(head, "", attempt, self._clock())
                return
            self._under_way.pop(place, None)
        elif dispatched is not None:
            if attempt > dispatched.attempt or not dispatched.job_id or dispatched.job_id in ended:
                self._under_way.pop(place)
            else:
                doubtful.setdefault(dispatched.job_id, []).append(place)

    def _look_for_batches(self, doubtful: dict[str, list[Place]]) -> None:
        """Free what is in a job that has ended, was lost, or sits on it: another worker may be free for it."""
        jobs = [self._under_way[places[0]] for places in doubtful.values()]
        for dispatched in self.jobs.without_job(jobs):
            places = doubtful[dispatched.job_id]
            heads = {place: self._head(place).message_id for place in places}
            for place in places:
                self._under_way.pop(place, None)
            # A job ends after its messages were answered: what was answered while we looked was not lost.
            self._examine(places)
            if any(place in self._waiting and self._head(place).message_id == heads[place] for place in places):
                self._came_to_nothing(dispatched.waiting.run)

    # -- dispatch ------------------------------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        """Jobs for everything that waits and is not under way, in the order of sending, spread over the slots."""
        ready = [place for place in self._waiting if place not in self._under_way]
        if not ready:
            return
        self._read_facts(sorted({run for run, _ in ready} - set(self._facts)), drop_ended=True)
        now = self._clock()
        by_run: dict[int, list[Place]] = {}
        for place in ready:
            facts = self._facts.get(place[0])
            if facts is not None and facts.not_before <= now:
                by_run.setdefault(place[0], []).append(place)
        slots = self._slots()
        for run, places in by_run.items():
            heads = {place: self._head(place) for place in places}
            places.sort(key=lambda place: heads[place].seq)
            attempts = self._attempts_of(places, heads)
            limit = self._time_limit(self._facts[run])
            size = min(MOST, -(-len(places) // slots))
            for some in virtual.in_batches(places, size):
                made = self.jobs.add_batch([(place[1], heads[place]) for place in some], time_limit=limit)
                for place in some:
                    self._untried.discard(heads[place].message_id)
                    self._under_way[place] = Dispatched(heads[place], made, attempts.get(place, 0), self._clock())

    def _attempts_of(self, places: Sequence[Place], heads: dict[Place, Waiting]) -> dict[Place, int]:
        """How often those were tried that somebody may have tried."""
        tried = [place for place in places if heads[place].message_id not in self._untried]
        if not tried:
            return {}
        with self.relay.errors(), self.relay.redis.pipeline(transaction=False) as pipe:
            for place in tried:
                pipe.hget(self.relay.keys.claims(place[1]), heads[place].message_id)
            found = pipe.execute()
        return {place: parse_claim(raw).attempt for place, raw in zip(tried, found, strict=True) if raw}


__all__ = ["VirtualDispatcher"]
