"""The dispatcher of a node: what waits in the inbox becomes RQ jobs, in turn, and no more than there are slots.

The inbox entry is the truth and the job a hint: a job that got lost, or whose worker died, is dispatched again under a
new number, and the claim decides who runs a message. So everything here may be repeated, and no state has to survive.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from fedq.apps.errors import FedqError
from fedq.node.imposed import ModsDiffer, check_same
from fedq.node.inbox import Arrived, Backlog, InboxReader, Lost, Waiting, ensure_group
from fedq.node.jobqueue import LOST_JOB, Dispatched, JobQueue
from fedq.node.pace import Pace
from fedq.node.role import WORKER, Role
from fedq.node.settings import NodeSettings
from fedq.relay import claims, nodes
from fedq.relay.claims import ClaimState
from fedq.relay.connection import Relay
from fedq.relay.errors import RelayAuthError, RelayFull, RelayUnavailable
from fedq.relay.host import worker_known_dead
from fedq.relay.pauses import Pauses
from fedq.relay.runs import OPEN
from fedq.relay.texts import text

logger = logging.getLogger(__name__)

RECONCILE = 3.0
"""Seconds between two comparisons of what waits with claims and jobs."""
PAUSES = (0.05, 0.25, 1.0, 2.0, 5.0, 10.0)
"""Pauses before a message is dispatched again whose jobs end without a claim."""


@dataclass(frozen=True, slots=True)
class Nudge:
    """Something happened that makes it worth looking at once: a worker of this host died, or has come up."""

    reason: str


@dataclass(slots=True)
class RunFacts:
    """What the dispatcher has to know of a run."""

    turn: float
    """When it was served last: what it is compared by with the others."""
    time_limit: float = 0.0
    fruitless: int = 0
    not_before: float = 0.0


class Reader(Protocol):
    """A thread that puts what arrives among the dispatcher's events."""

    def start(self) -> None: ...

    def stop(self) -> None: ...


class Dispatcher:
    """Serves one node while it holds the role, and waits for the role otherwise.

    Args:
        settings: the node's; ``slots`` are those of this process' own workers.
        relay: a handle of its own.
        queue: a handle on the server that holds the node's RQ queue.
        role: the role, perhaps taken already.
        info: what the node says of itself while this dispatcher serves it.
    """

    def __init__(
        self,
        settings: NodeSettings,
        relay: Relay,
        queue: Relay,
        role: Role,
        info: nodes.NodeInfo,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self.node = settings.name
        self.relay = relay
        self.role = role
        self.info = info
        self.jobs = JobQueue(queue, settings.name, clock=clock)
        self.events: SimpleQueue[Any] = SimpleQueue()
        """:class:`Arrived`, :class:`Lost`, :class:`Nudge`, or None at the end."""
        self._clock = clock
        self._stopping = False
        self._backlog = Backlog(relay, self.node)
        self._inflight: dict[int, Dispatched] = {}
        self._untried: set[str] = set()
        """Messages that have just come, so that nobody has tried them. Were that wrong, a job would be made in vain."""
        self._facts: dict[int, RunFacts] = {}
        self._ended: set[int] = set()
        """Runs that are over and still have something in the inbox."""
        self._turns = 0
        self._synced = False
        self._online = False
        self._served_since = 0.0
        self._pace = Pace(settings.heartbeat)
        self._beat_at = float("-inf")
        self._reconcile_at = 0.0
        self._skew = 0.0

    # -- from outside (signal handlers and threads) --------------------------------------------------------------------

    def stop(self) -> None:
        """Let :meth:`run` return soon. Safe in a signal handler."""
        self._stopping = True
        self.events.put(None)

    def nudge(self, reason: str) -> None:
        """Look at claims and jobs now."""
        self.events.put(Nudge(reason))

    # -- the loop ------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until :meth:`stop`. Outages are waited for; a lost role is waited for as well.

        Raises ModsDiffer when an additional worker finds that the SuperNode imposes other mods.

        At the end the node is offline and the role is free, if the server can still be told.
        """
        reader: Reader | None = None
        pauses = Pauses()
        said = ""
        try:
            while not self._stopping:
                try:
                    if not self._beat():
                        if reader is not None:
                            reader.stop()
                            reader = None
                        self._standby()
                        continue
                    if reader is None:
                        reader = self._reader()
                        reader.start()
                        self._synced = False
                    if not self._synced:
                        self._sync()
                        if said:
                            logger.info("node %s: connected again", self.node)
                            said = ""
                    pauses.reset()
                    self._serve_once()
                except ModsDiffer:
                    raise
                except FedqError as error:
                    self._synced = False
                    if str(error) != said:
                        said = str(error)
                        logger.warning("node %s: %s; trying again", self.node, error)
                    self._wait(pauses.next())
        finally:
            if reader is not None:
                reader.stop()
            self._leave()

    def _reader(self) -> Reader:
        """What reads the inbox, not started yet."""
        ensure_group(self.relay, self.node)
        return InboxReader(self.relay, self.node, self.events.put)

    def _serve_once(self) -> None:
        """Wait for something to happen, or to be due, and act on it."""
        due = min(self._beat_at + self._pace.every, self._reconcile_at)
        if self._backlog.runs:
            waiting = [f.not_before for run, f in self._facts.items() if run not in self._inflight]
            due = min([due, *(p for p in waiting if p > self._clock())])
        look, reconcile = False, False
        wakes: list[str] = []
        for event in self._gather(max(0.0, due - self._clock())):
            match event:
                case Arrived(messages, woken):
                    self._backlog.add(messages)
                    self._untried.update(m.message_id for m in messages)
                    wakes += woken
                    # Nobody wakes us when the last message of a run is answered while nothing waits behind it.
                    look = look or bool(woken) or any(m.run in self._inflight for m in messages)
                case Lost(reason):
                    raise RelayUnavailable(reason)
                case Nudge():
                    reconcile = True
                case None:
                    return
        if wakes:
            # First the wake-up goes, then we look: one that comes in between is written again.
            self._backlog.delete(wakes)
        if reconcile or self._clock() >= self._reconcile_at:
            self._reconcile()
        elif look or (self._backlog.runs and len(self._inflight) >= self._slots()):
            self._refresh()
            if wakes and self._inflight:
                self._verify()
        self._dispatch()

    def _gather(self, timeout: float) -> list[Any]:
        """What has happened; waits for the first, and takes all that is there."""
        events: list[Any] = []
        try:
            events.append(self.events.get(timeout=timeout) if timeout > 0 else self.events.get_nowait())
            while True:
                events.append(self.events.get_nowait())
        except Empty:
            pass
        return events

    # -- role and heartbeat --------------------------------------------------------------------------------------------

    def _beat(self) -> bool:
        """Lease and heartbeat, when they are due. Whether the role is held.

        A node that has not been synchronised is not online yet: it may not be registered, or have no inbox.
        """
        if self.role.held and self._clock() < self._beat_at + self._pace.every:
            return True
        had = self.role.held
        self._pace.look(self.relay, self._clock())
        if self.role.holder.kind == WORKER:
            check_same(self.node, self.settings.mods, nodes.imposed(self.relay, self.node))
        if not self.role.take(at_least=self._pace.ttl, alive=self._pace.ttl if self._online else None):
            if had:
                logger.warning("node %s: %s took over as dispatcher; standing by", self.node, self.role.other)
            return False
        self._beat_at = self._clock()
        if self._online and self._backlog.runs:
            self._skew = self.relay.now() - time.time()
        return True

    def _standby(self) -> None:
        """Wait until it is worth asking for the role again."""
        self._inflight.clear()
        self._synced = self._online = False
        self._wait(min(self.settings.heartbeat, self.role.left + 0.1))

    def _wait(self, seconds: float) -> None:
        """Let time pass, or the end come. What happens meanwhile is found by reading everything anew."""
        until = self._clock() + seconds
        while not self._stopping and (left := until - self._clock()) > 0:
            self._gather(left)

    def _leave(self) -> None:
        """The node shows offline at once, and another SuperNode of the name may start at once."""
        if not self.role.held:
            return
        try:
            nodes.leave(self.relay, self.node)
            self.role.drop()
        except FedqError as error:
            logger.info("node %s: leaving without telling the server: %s", self.node, error)

    # -- what is known -------------------------------------------------------------------------------------------------

    def _sync(self) -> None:
        """Read everything anew: at start, and after whatever may have made us miss something."""
        ensure_group(self.relay, self.node)
        self._register()
        nodes.beat(self.relay, self.node, ttl=self._pace.ttl)
        self._online = True
        self._backlog.read_anew()
        self._untried.clear()
        self._skew = self.relay.now() - time.time()
        self._inflight.clear()
        for facts in self._facts.values():
            facts.fruitless, facts.not_before = 0, 0.0
        self._read_facts(self._backlog.runs, drop_ended=True)
        self._synced = True
        self._served_since = self._clock()
        self._reconcile()
        self._dispatch()

    def _register(self) -> None:
        """Say who we are. A node that may not add itself to the register must have been added by an operator.

        A full server takes nothing new; what an earlier life has said has to do then, so that replies drain.
        An additional worker that stands in for the SuperNode leaves what that said of itself.
        """
        if self.role.holder.kind == WORKER:
            return
        try:
            nodes.register(self.relay, self.node, self.info)
        except (RelayAuthError, RelayFull) as error:
            with self.relay.errors():
                known = self.relay.redis.sismember(self.relay.keys.nodes(), self.node)
            if not known and isinstance(error, RelayFull):
                raise
            if not known:
                raise RelayAuthError(
                    f"node {self.node} is not registered and its user may not do that; "
                    f"an operator has to: fedq nodes add {self.node}",
                    node_id=self.node,
                ) from None

    def _refresh(self) -> None:
        """Forget what has been answered; find out what waits that we have not heard of."""
        if not self._backlog.refresh():
            # Its entry may be on its way from the reader; if it is not, reading everything anew finds it.
            self._reconcile_at = min(self._reconcile_at, self._clock() + 0.2)
        for run, dispatched in list(self._inflight.items()):
            head = self._backlog.head(run)
            if head is None or head.message_id != dispatched.waiting.message_id:
                del self._inflight[run]
                if facts := self._facts.get(run):
                    facts.fruitless, facts.not_before = 0, 0.0

    def _reconcile(self) -> None:
        """Compare what waits with claims and jobs; whatever has no live job becomes free for dispatch."""
        self._reconcile_at = self._clock() + RECONCILE
        self._refresh()
        if self._reconcile_at < self._clock() + RECONCILE:
            self._reconcile_at = self._clock() + RECONCILE
            self._backlog.read_anew()
            self._refresh()
        self._find_resumed()
        self._facts = {run: f for run, f in self._facts.items() if run in set(self._backlog.runs)}
        self._untried = {message for message in self._untried if message in self._backlog}
        if self._backlog.runs:
            self._verify(everything=True)

    def _find_resumed(self) -> None:
        """A run that failed goes on: what waits for it is still in the inbox."""
        if not self._ended:
            return
        ended = sorted(self._ended)
        with self.relay.errors(), self.relay.redis.pipeline(transaction=False) as pipe:
            for run in ended:
                pipe.hget(self.relay.keys.run(run), "status")
                pipe.exists(self.relay.keys.order(self.node, run))
            found = pipe.execute()
        resumed = {run for run, status in zip(ended, found[::2], strict=True) if text(status or b"") in OPEN}
        cleaned = {run for run, waits in zip(ended, found[1::2], strict=True) if not waits}
        self._ended -= resumed | cleaned
        if resumed - cleaned:
            self._backlog.read_anew()

    def _verify(self, *, everything: bool = False) -> None:
        """Look whether each dispatched message is still being taken care of.

        ``everything`` also looks at heads for which no job of ours is known, but which somebody may hold: after a
        restart, their claims count as dispatched.
        """
        state = claims.read_claims(self.relay, self.node)
        now = time.time() + self._skew
        doubtful: list[Dispatched] = []
        for run in self._backlog.runs:
            head = self._backlog.head(run)
            dispatched = self._inflight.get(run)
            if head is None or (dispatched is None and not everything):
                continue
            held = state.get(head.message_id)
            if held is not None and held.token and not self._free_dead(head, held, now, node=self.node):
                if dispatched is None:
                    self._inflight[run] = Dispatched(head, "", held.attempt, self._clock())
                continue
            attempt = held.attempt if held is not None else 0
            if held is not None and held.token:
                self._inflight.pop(run, None)  # just freed: its holder is dead
            elif dispatched is not None and (attempt > dispatched.attempt or not dispatched.job_id):
                self._inflight.pop(run, None)  # its job has claimed it and given it back
            elif dispatched is not None:
                doubtful.append(dispatched)
        if doubtful:
            self._look_for_jobs(doubtful)

    def _free_dead(self, head: Waiting, held: ClaimState, now: float, *, node: str) -> bool:
        """Free a claim whose holder is dead: known so on this host, or by a lease that lapsed. Whether it did."""
        if worker_known_dead(held.worker):
            freed = claims.release(self.relay, node, head.message_id, held.token, counts=True)
            if freed:
                logger.warning(
                    "run %d, message %s: the worker %s died with attempt %d",
                    head.run,
                    head.message_id[:8],
                    held.worker,
                    held.attempt,
                )
            return freed
        # A lease that ended while the server (or we) were away says nothing: its holder could not renew it.
        if held.lease_end < now and self._clock() - self._served_since >= self.settings.lease:
            freed = claims.lapse(self.relay, node, head.message_id, held.token)
            if freed:
                logger.warning(
                    "run %d, message %s: nothing was heard of the worker %s for %.0f s; attempt %d counts as lost",
                    head.run, head.message_id[:8], held.worker, self.settings.lease, held.attempt,
                )  # fmt: skip
            return freed
        return False

    def _look_for_jobs(self, doubtful: list[Dispatched]) -> None:
        """Free what was dispatched, is not claimed, and has no live job."""
        gone = self.jobs.without_job(doubtful)
        if gone:
            # A job ends after its message was answered: what was answered while we looked was not lost.
            self._refresh()
            gone = [d for d in gone if self._inflight.get(d.waiting.run) is d]
        # One that a worker may be fetching is looked at again as soon as it must have come to light.
        soon = [d.since + LOST_JOB for d in doubtful if d not in gone]
        self._reconcile_at = min([self._reconcile_at, *(at + 0.05 for at in soon if at > self._clock())])
        for d in gone:
            self._inflight.pop(d.waiting.run, None)
            self._came_to_nothing(d.waiting.run)

    def _came_to_nothing(self, run: int) -> None:
        """A job of the run ended or got lost: the next one waits a little longer each time, and the run may be over."""
        facts = self._facts_of(run)
        facts.not_before = self._clock() + PAUSES[min(facts.fruitless, len(PAUSES) - 1)]
        facts.fruitless += 1
        if facts.fruitless > 1:
            self._read_facts([run], drop_ended=True)

    def _facts_of(self, run: int) -> RunFacts:
        """What is known of a run. A new one comes before the run served last, and behind those that wait longer."""
        if run not in self._facts:
            self._facts[run] = RunFacts(turn=self._turns - 0.5)
        return self._facts[run]

    def _read_facts(self, runs: list[int], *, drop_ended: bool = False) -> None:
        if not runs:
            return
        with self.relay.errors(), self.relay.redis.pipeline(transaction=False) as pipe:
            for run in runs:
                pipe.hmget(self.relay.keys.run(run), "status", "time_limit")
            found = pipe.execute()
        for run, (status, limit) in zip(runs, found, strict=True):
            if drop_ended and (status is None or text(status) not in OPEN):
                # Its clean-up will empty the inbox; until then, or until it is resumed, there is nothing to do for it.
                self._forget_run(run)
                continue
            self._facts_of(run).time_limit = float(limit or 0)

    def _forget_run(self, run: int) -> None:
        self._ended.add(run)
        self._backlog.drop_run(run)
        self._inflight.pop(run, None)
        self._facts.pop(run, None)

    # -- dispatch ------------------------------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        """Jobs for runs that have a message and none under way, the one that waited longest for its turn first."""
        now = self._clock()
        ready = [run for run in self._backlog.runs if run not in self._inflight]
        if not ready:
            return
        unknown = [run for run in ready if run not in self._facts]
        self._read_facts(unknown, drop_ended=True)
        ready = [run for run in ready if run in self._facts and self._facts[run].not_before <= now]
        if not ready:
            return
        free = self._slots() - len(self._inflight)
        for run in sorted(ready, key=lambda r: (self._facts[r].turn, r))[: max(0, free)]:
            head = self._backlog.head(run)
            if head is not None:
                facts = self._facts[run]
                limit = self._time_limit(facts)
                attempt = 0 if head.message_id in self._untried else self._attempts(head)
                self._inflight[run] = self.jobs.add(head, attempt=attempt, time_limit=limit)
                self._untried.discard(head.message_id)
                self._turns += 1
                facts.turn = self._turns
                # Nobody tells of a job that ends before its claim, or that is taken by a worker which never hears of
                # it because it, or the server, dies: that shows once the job would have arrived.
                self._reconcile_at = min(self._reconcile_at, now + LOST_JOB + 0.05)

    def _attempts(self, head: Waiting) -> int:
        with self.relay.errors():
            raw: Any = self.relay.redis.hget(self.relay.keys.claims(self.node), head.message_id)
        return int(text(raw).partition("|")[0]) if raw else 0

    def _time_limit(self, facts: RunFacts) -> float | None:
        limits = [limit for limit in (facts.time_limit, self.settings.time_limit) if limit]
        return min(limits) if limits else None

    def _slots(self) -> int:
        """How many jobs there may be at once: our own workers count also while they are being restarted."""
        return max(self.settings.slots, self.jobs.workers())
