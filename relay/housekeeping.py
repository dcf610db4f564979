"""What somebody has to do for all runs: start them, notice what has lapsed, tidy up behind them.

Every SuperLink has a process for it; the one that holds the lease does the work. It blocks on a stream that says that a
run has changed, and knows by itself when the next deadline comes. All of its steps may be repeated, and two that work
at once, after a pause longer than the lease, do no harm: claims decide.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rq.job import JobStatus

from fedq.apps.error import Error, ErrorCode
from fedq.apps.errors import FedqError
from fedq.relay import cleanup, links, messages, nodes, runs, scripts
from fedq.relay.connection import Relay
from fedq.relay.errors import RelayError, RelayUnavailable, RunNotFound
from fedq.relay.host import process_name, worker_known_dead
from fedq.relay.jobs import FedqQueue, enqueue, fetch
from fedq.relay.keys import SERVERAPP_QUEUE
from fedq.relay.messages import Reason
from fedq.relay.pauses import Pauses
from fedq.relay.runs import RunInfo
from fedq.relay.serverapps import describe, job_id
from fedq.relay.superlink import prune
from fedq.relay.texts import text

log = logging.getLogger(__name__)

LEASE = 6.0
"""Seconds that the role outlives the last word of its holder."""
TURN = 1.0
"""Most seconds between two looks at the runs that are not over."""
PRUNE_EVERY = 300.0
"""Seconds between two looks for runs that were kept long enough."""
SECOND_LOOK = 0.25
"""Seconds after which a process that was seen dead is looked at again."""
JOB_PATIENCE = 5.0
"""Seconds that a job may be nowhere (neither queued nor holding its run) before another one is made. Too soon costs a
job that comes to nothing: the claim decides who runs the ServerApp."""
KEEP_FAILED = 24 * 3600.0
"""Seconds that a failed run keeps its checkpoint, Contexts and messages, so that it can be resumed."""
RETENTION = 7 * 24 * 3600.0
"""Seconds that status, config, result and events of an ended run are kept."""

SAY_AGAIN = 60.0
"""Seconds until the same trouble of a server that is there is told again."""

NO_SLOT = "no free slot"


@dataclass(slots=True)
class Seen:
    """A job that does not hold its run: since when it looks as it looks."""

    status: str
    since: float


@dataclass
class Housekeeper:
    """Keeps house for one home. :meth:`run` returns after :meth:`stop`; an outage is waited for.

    Args:
        relay: a handle of its own.
        slots: how many ServerApps the SuperLink of this process can run.
        retention: seconds that ended runs are kept.
        keep_failed: seconds that a failed run can be resumed.
        clock: seconds that never go back.
    """

    relay: Relay
    slots: int = 0
    retention: float = RETENTION
    keep_failed: float = KEEP_FAILED
    clock: Callable[[], float] = time.monotonic
    name: str = field(default_factory=lambda: f"{process_name()}-{secrets.token_hex(3)}")
    held: bool = False
    """Whether this one holds the role."""

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._cursor = "0"
        self._beat_at = float("-inf")
        self._pruned_at = float("-inf")
        self._served_since: float | None = None
        self._seen: dict[str, Seen] = {}
        self._dead: dict[int, str] = {}
        self._connected = False
        self._told, self._told_at = "", float("-inf")

    # -- the loop ------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Work until told to stop."""
        pauses = Pauses()
        while not self._stop.is_set():
            try:
                wait = self.turn()
                pauses.reset()
                if not self._stop.is_set():
                    self._block(wait)
            except RelayError as error:
                self._tell(error)
                self._lost(isinstance(error, RelayUnavailable))
                self._stop.wait(pauses.next())
        self._leave()

    def stop(self, *_: object) -> None:
        """End :meth:`run` soon; safe to call from a signal handler."""
        self._stop.set()

    def turn(self) -> float:
        """Do all that is due; seconds until something else will be."""
        now = self.clock()
        if not self._connected:
            self._connect()
        beats = now >= self._beat_at + links.BEAT
        if beats:
            self._beat_at = now
            links.beat(self.relay, self.name, self.slots)
        role = self.relay.keys.housekeeper()
        lease = nodes.take_lease(self.relay, role, self.name, lease=LEASE)
        if not lease.held and links.known_dead(lease.holder):
            lease = nodes.take_lease(self.relay, role, self.name, lease=LEASE, dead=lease.holder)
        if lease.held and not self.held:
            log.info("housekeeping is done here now")
            self._seen.clear()
        self.held = lease.held
        if not self.held:
            return min(TURN, max(0.05, lease.left))
        if beats:
            links.strike_off(self.relay)  # also while no run asks for a slot
        wait = self._look_after_runs()
        if now >= self._pruned_at + PRUNE_EVERY:
            self._pruned_at = now
            if gone := prune(self.relay, self.retention):
                log.info("removed %d runs that ended long ago", len(gone))
        return wait

    def _tell(self, error: RelayError) -> None:
        """Say what is waited for: once, and again after a while, since a server may be full or read-only for hours."""
        now = self.clock()
        # A server that goes away is first a connection that closed, and then one that is refused.
        trouble = "away" if isinstance(error, RelayUnavailable) else str(error)
        if trouble != self._told or now >= self._told_at + SAY_AGAIN:
            self._told, self._told_at = trouble, now
            log.warning("housekeeping: %s; waiting", error)

    def _connect(self) -> None:
        with self.relay.errors():
            scripts.load(self.relay.redis)
        self._connected = True
        self._told = ""
        self._cursor = "0"
        self._served_since = self.clock()
        self._beat_at = float("-inf")

    def _lost(self, gone: bool) -> None:
        if gone:
            self._connected = False
        self._served_since = None if gone else self._served_since

    def _block(self, seconds: float) -> None:
        """Wait until a run has changed, ``seconds`` at most."""
        with self.relay.errors():
            raw: Any = self.relay.redis.xread(
                {self.relay.keys.wake(): self._cursor}, count=16, block=self.relay.block(seconds * 1000)
            )
        if raw:
            self._cursor = text(raw[0][1][-1][0])

    def _leave(self) -> None:
        try:
            links.leave(self.relay, self.name)
            nodes.drop_lease(self.relay, self.relay.keys.housekeeper(), self.name)
        except FedqError as error:
            log.debug("could not say good-bye: %s", error)

    # -- runs ----------------------------------------------------------------------------------------------------------

    def _look_after_runs(self) -> float:
        now = self.relay.now()
        wait = TURN
        open_runs: list[RunInfo] = []
        for run in runs.alive_runs(self.relay):
            try:
                info = runs.run_info(self.relay, run)
            except RunNotFound:
                cleanup.clean_run(self.relay, run, everything=True)
                continue
            if info.resumable and now < info.ended + self.keep_failed:
                wait = min(wait, info.ended + self.keep_failed - now)
            elif info.over:
                self._clean(info)
            else:
                open_runs.append(info)
                wait = min(wait, self._expire(info, now))
        return max(0.01, min(wait, self._start(open_runs, now)))

    def _clean(self, info: RunInfo) -> None:
        if cleanup.clean_run(self.relay, info.run_id):
            log.info("run %d %s; cleaned up", info.run_id, info.status)

    def _expire(self, info: RunInfo, now: float) -> float:
        """Answer the messages whose time is up; seconds until the next one's is."""
        keys, run = self.relay.keys, info.run_id
        while late := messages.expired(self.relay, run, now):
            with self.relay.errors():
                raw: Any = self.relay.redis.hmget(keys.sent(run), late)
            for m, value in zip(late, raw, strict=True):
                if value is not None:
                    sent = messages.parse_sent(m, text(value))
                    error = Error(ErrorCode.MESSAGE_EXPIRED, f"no answer of {sent.node} within the message's TTL")
                    messages.answer(self.relay, run, sent.node, sent.entry, m, Reason.EXPIRED, error)
            with self.relay.errors():
                self.relay.redis.zrem(keys.deadlines(run), *late)
        with self.relay.errors():
            following: Any = self.relay.redis.zrange(keys.deadlines(run), 0, 0, withscores=True)
        return max(0.0, following[0][1] / 1000 - now) + 0.002 if following else TURN

    def _start(self, open_runs: list[RunInfo], now: float) -> float:
        """Enqueue the runs that nobody holds, the oldest first, as many as there are slots.

        Seconds until one may be there that is held now.
        """
        self._free_dead(open_runs)
        holding = [info for info in open_runs if info.token and info.lease > now]
        waiting = [info for info in open_runs if info not in holding]
        due = [SECOND_LOOK] if self._dead else []
        due += [info.lease - now + 0.01 for info in holding]
        if self._served_since is not None and any(info.token for info in waiting):
            due.append(max(0.0, self._served_since + runs.RUN_LEASE - self.clock()) or TURN)
        wait = min([TURN, *due])
        if not waiting:
            self._seen.clear()
            return wait
        free = sum(links.strike_off(self.relay).values()) - len(holding)
        jobs = {info.run_id: self._job(info) for info in waiting}
        free -= sum(job is not None for job in jobs.values())
        for info in waiting:
            if jobs[info.run_id] is not None:
                continue
            if info.token and not self._uninterrupted(info, now):
                continue
            if info.max_attempts and info.tries >= info.max_attempts:
                self._fail(info)
            elif free <= 0:
                self._say(info, NO_SLOT)
            elif self._enqueue(info):
                free -= 1
        return wait

    def _free_dead(self, open_runs: list[RunInfo]) -> None:
        """Free the runs whose process is known to be dead, so that nobody has to wait for their leases.

        What has died on this host is seen from here. At the second look: its worker, which knows more about the death,
        comes first if it is still there.
        """
        dead = {info.run_id: info for info in open_runs if info.token and worker_known_dead(info.owner)}
        for number, info in dead.items():
            if self._dead.get(number) == info.token:
                log.warning("run %d: its process %s and that one's worker are gone", number, info.owner)
                runs.release_run(self.relay, number, info.token, counts=True)
                open_runs[open_runs.index(info)] = runs.run_info(self.relay, number)
        self._dead = {number: info.token for number, info in dead.items()}

    def _uninterrupted(self, info: RunInfo, now: float) -> bool:
        """Whether a lapsed lease means that its holder is gone: the server was there all the time."""
        if self._served_since is None or self.clock() < self._served_since + runs.RUN_LEASE:
            return False
        log.warning("run %d: the lease of %s has lapsed %.1f s ago", info.run_id, info.owner, now - info.lease)
        return True

    def _fail(self, info: RunInfo) -> None:
        why = info.detail if info.detail and info.detail != NO_SLOT else "its process was lost each time"
        reason = (
            f"the ServerApp was started {info.tries} times from checkpoint {info.checkpoint} and was lost each time "
            f"(max_attempts); the last time: {why}"
        )
        runs.finish(self.relay, info.run_id, "", "failed", reason=reason)

    # -- jobs ----------------------------------------------------------------------------------------------------------

    def _job(self, info: RunInfo) -> str | None:
        """The job of the run's next attempt that is still to be expected to claim it, or None."""
        number = 1
        while True:
            name = job_id(info.run_id, info.attempt + 1, number)
            with self.relay.errors():
                job = fetch(name, self.relay.redis)
            if job is None:
                self._seen.pop(name, None)
                return None
            if self._alive(name, job.get_status(refresh=False)):
                return name
            number += 1

    def _alive(self, name: str, status: JobStatus | None) -> bool:
        if status is JobStatus.QUEUED:
            with self.relay.errors():
                queued = FedqQueue(SERVERAPP_QUEUE, self.relay.redis).get_job_position(name) is not None
            if queued:
                self._seen.pop(name, None)
                return True
        elif status is not JobStatus.STARTED:
            return False
        seen = self._seen.get(name)
        if seen is None or seen.status != str(status):
            self._seen[name] = seen = Seen(str(status), self.clock())
        return self.clock() < seen.since + JOB_PATIENCE

    def _enqueue(self, info: RunInfo) -> bool:
        attempt, number = info.attempt + 1, 1
        while number <= 1000:
            name = job_id(info.run_id, attempt, number)
            with self.relay.errors():
                made = enqueue(
                    SERVERAPP_QUEUE,
                    self.relay.redis,
                    name,
                    {"run": info.run_id, "attempt": attempt},
                    description=describe(info, attempt),
                    meta={"kind": "serverapp", "run": info.run_id, "attempt": attempt, "name": info.name},
                )
            if made:
                log.info("run %d: attempt %d is enqueued", info.run_id, attempt)
                self._say(info, "")
                return True
            number += 1
        return False

    def _say(self, info: RunInfo, detail: str) -> None:
        """Show what a run waits for. What an attempt died of stays until there is something else to say."""
        if detail == NO_SLOT and info.status == "running":
            return
        if info.detail != detail and (detail or info.detail == NO_SLOT):
            runs.set_detail(self.relay, info.run_id, detail)
