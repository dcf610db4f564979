"""The RQ queue of a node, as its dispatcher sees it: jobs made, jobs still alive, workers that take them."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rq import worker_registration

from fedq.node.inbox import Waiting
from fedq.relay.connection import Relay
from fedq.relay.jobs.job import FedqJob, FedqQueue, enqueue

LOST_JOB = 1.0
"""Seconds after which a job that is neither queued nor claimed counts as lost. Too soon costs a job that comes to
nothing: the claim decides who runs a message."""
LOST_KEPT = 1000
"""Lost jobs that are remembered, so that they are not taken for live ones."""
COUNT_FRESH = 2.0
"""Seconds that a count of live workers is believed."""

_LIVE = (b"queued", b"started", b"deferred", b"scheduled")


@dataclass(slots=True)
class Dispatched:
    """A message that is being taken care of.

    ``job_id`` is empty where only its claim tells so. ``attempt`` is what its claim said when the job was made: once
    that says more and is free, the job has had its chance.
    """

    waiting: Waiting
    job_id: str
    attempt: int
    since: float


class JobQueue:
    """The queue named after ``node`` on the server of ``queue``, which need not be the relay's.

    Every method may be repeated. Errors are those of the relay, about the queue's server.
    """

    def __init__(self, queue: Relay, node: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.node = node
        self._server = queue
        self._redis = queue.redis
        self._key = FedqQueue(node, self._redis).key
        self._clock = clock
        self._workers = 0
        self._counted_at = float("-inf")
        self._lost: dict[str, None] = {}

    def add(self, message: Waiting, *, attempt: int, time_limit: float | None) -> Dispatched:
        """Make a job for a message that has had ``attempt`` attempts.

        Its number is the first that is not taken, since ids of ended jobs stay for a while. A live job of the message,
        made before a restart, is taken over as it is, unless :meth:`without_job` has called it lost: RQ goes on calling
        a job queued that was taken off the queue by a worker which never heard of it.
        """
        number = attempt + 1
        with self._server.errors():
            while not self._made(message, number, attempt + 1, time_limit):
                number += 1
        return Dispatched(message, self._job_id(message, number), attempt, self._clock())

    def _job_id(self, message: Waiting, number: int) -> str:
        return f"{self.node}_{message.message_id}_{number}"

    def _made(self, message: Waiting, number: int, attempt: int, time_limit: float | None) -> bool:
        """Whether there is a live job of that number now."""
        job_id = self._job_id(message, number)
        request = {
            "node": self.node,
            "run": message.run,
            "entry": message.entry,
            "message": message.message_id,
            "type": message.type,
            "group": message.group,
            "limit": time_limit,
        }
        meta = {name: request[name] for name in ("run", "type", "group", "node", "message")}
        queued = enqueue(
            self.node,
            self._redis,
            job_id,
            request,
            description=describe(message.run, message.type, message.group, self.node, attempt),
            meta={**meta, "attempt": attempt, "bytes_in": message.nbytes},
        )
        return queued or (job_id not in self._lost and self._redis.hget(FedqJob.key_for(job_id), "status") in _LIVE)

    def add_batch(self, messages: Sequence[tuple[str, Waiting]], *, time_limit: float | None) -> str:
        """Make a job for messages of one run to different (virtual) nodes; its id, which is new each time."""
        first, head = messages[0]
        job_id = f"{self.node}_{head.message_id}_{secrets.token_hex(4)}"
        nodes = first if len(messages) == 1 else f"{first} and {len(messages) - 1} more"
        request = {
            "run": head.run,
            "messages": [[node, m.entry, m.message_id, m.type, m.group] for node, m in messages],
            "limit": time_limit,
        }
        with self._server.errors():
            enqueue(
                self.node,
                self._redis,
                job_id,
                request,
                description=f"{describe_message(head.run, head.type, head.group)} · {nodes}",
                meta={
                    "run": head.run,
                    "type": head.type,
                    "group": head.group,
                    "node": nodes,
                    "messages": len(messages),
                    "bytes_in": sum(m.nbytes for _, m in messages),
                },
            )
        return job_id

    def without_job(self, dispatched: Iterable[Dispatched]) -> list[Dispatched]:
        """Those whose job has ended, or got lost. One round trip."""
        jobs = list(dispatched)
        if not jobs:
            return []
        with self._server.errors(), self._redis.pipeline(transaction=False) as pipe:
            for d in jobs:
                pipe.hget(FedqJob.key_for(d.job_id), "status")
                pipe.lpos(self._key, d.job_id)
            found = pipe.execute()
        gone = []
        for d, status, place in zip(jobs, found[::2], found[1::2], strict=True):
            # A job on its way from the queue to a worker is in neither place for a moment.
            on_its_way = self._clock() - d.since < LOST_JOB
            if status not in _LIVE or (place is None and not on_its_way):
                gone.append(d)
                self._lost[d.job_id] = None
        while len(self._lost) > LOST_KEPT:
            del self._lost[next(iter(self._lost))]
        return gone

    def workers(self) -> int:
        """Live workers of the queue, wherever they run. Counted again after ``COUNT_FRESH`` seconds."""
        if self._clock() - self._counted_at >= COUNT_FRESH:
            with self._server.errors():
                known: Any = self._redis.smembers(worker_registration.WORKERS_BY_QUEUE_KEY % self.node)
                self._workers = int(self._redis.exists(*known)) if known else 0
            self._counted_at = self._clock()
        return self._workers

    def forget(self) -> None:
        """Count anew the next time."""
        self._counted_at = float("-inf")


def describe(run: int, message_type: str, group: str, node: str, attempt: int) -> str:
    """What a dashboard shows of a job, such as ``run 7 · train · round 3 · clinic-a · attempt 1``."""
    return f"{describe_message(run, message_type, group)} · {node} · attempt {attempt}"


def describe_message(run: int, message_type: str, group: str) -> str:
    """Such as ``run 7 · train · round 3``."""
    parts = [f"run {run}", message_type]
    if group:
        parts.append(f"round {group}" if group.isdigit() else group)
    return " · ".join(parts)
