"""The one RQ job class: JSON, and exactly one function.

RQ runs whatever function a job names and calls back whatever its hash lists. Whoever can write to a queue could so run
any importable function on a node. :class:`FedqJob` reads JSON only, accepts one function name, and drops callbacks,
webhooks, dependencies, retries, repeats, groups and rate limits from what it reads.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping
from typing import Any, NoReturn
from weakref import WeakSet

import redis
from redis.exceptions import NoPermissionError, WatchError
from rq.exceptions import DeserializationError, NoSuchJobError
from rq.job import Job, JobStatus
from rq.queue import Queue
from rq.serializers import JSONSerializer
from rq.utils import as_text, now

from fedq.relay import scripts
from fedq.relay.errors import RelayError, RelayUnavailable

__all__ = ["TASK", "FedqJob", "FedqQueue", "ForeignJob", "enqueue", "perform"]

TASK = "fedq.relay.jobs.perform"
"""The only function name that a job may have."""

RESULT_TTL = 500
"""Seconds that a finished job stays visible."""
FAILURE_TTL = 3600
"""Seconds that a failed job stays visible."""
NO_TIMEOUT = -1
"""RQ's own limit (a signal inside the job) is not used: the worker kills."""


class ForeignJob(RelayError):
    """A job in one of our queues that is not one of ours. It is recorded as failed and nothing of it is executed."""


def perform(**_: Any) -> NoReturn:
    """What a job of ours names. Only an :class:`~fedq.relay.jobs.AppWorker` knows how to perform it."""
    raise ForeignJob(
        "only a worker of fedq can perform this job: start one with fedq supernode, fedq worker or fedq superlink"
    )


class FedqJob(Job):
    """An RQ job that carries a JSON object and no code.

    ``perform()`` calls :attr:`handler`, which the worker binds, with the job; without a handler, or if the job names
    any other function than :data:`TASK`, it raises :class:`ForeignJob`.
    """

    handler: Callable[[FedqJob], Any] | None = None

    def __init__(self, id: str | None = None, connection: redis.Redis | None = None, serializer: Any = None) -> None:  # noqa: A002
        super().__init__(id, connection, JSONSerializer)

    def request(self) -> dict[str, Any]:
        """The job's arguments. Raises :class:`ForeignJob` if it is not one of ours."""
        try:
            name, instance, args, kwargs = self.func_name, self.instance, self.args, self.kwargs
        except DeserializationError as error:
            raise ForeignJob(f"job {self.id} refused: its data is not JSON, and nothing else is accepted") from error
        if name != TASK:
            raise ForeignJob(f"job {self.id} refused: it names the function {name!r}, and only {TASK!r} is accepted")
        if instance is not None or args or not isinstance(kwargs, dict):
            raise ForeignJob(f"job {self.id} refused: it has arguments of a form that fedq does not write")
        return kwargs

    def perform(self) -> Any:
        """Check the job and hand it to the worker's handler."""
        self.request()
        if self.handler is None:
            perform()
        self._result = self.handler(self)
        return self._result

    def cleanup(
        self, ttl: int | None = None, pipeline: redis.client.Pipeline | None = None, remove_from_queue: bool = True
    ) -> None:
        """Let the job expire. Unlike other jobs it has no dependents, whose keys would have to expire with it."""
        if ttl is not None and ttl >= 0:
            (self.connection if pipeline is None else pipeline).expire(self.key, ttl)

    def restore(self, raw_data: Any) -> Any:
        """Read the job from its hash, leaving out everything that would run or reach something else."""
        super().restore(raw_data)
        self._success_callback_name = self._failure_callback_name = self._stopped_callback_name = None
        self.webhooks = []
        self._dependency_ids = []
        self.retries_left = self.number_of_retries = self.retry_intervals = None
        self.repeats_left = self.repeat_intervals = None
        self.group_id = None
        self.rate_limit_key = self.rate_limit_concurrency = None
        if not isinstance(self.meta, dict):
            self.meta = {}


class FedqQueue(Queue):
    """A queue of :class:`FedqJob`. Its maintenance lock lasts for one interval and is not given back before."""

    maintenance_interval = 60

    job_class = FedqJob

    def __init__(self, name: str, connection: redis.Redis, **_: Any) -> None:
        super().__init__(name, connection=connection, job_class=FedqJob, serializer=JSONSerializer)

    def acquire_maintenance_lock(self) -> bool:
        """True for one worker of the queue and interval."""
        return bool(self.connection.set(self.registry_cleaning_key, 1, nx=True, ex=self.maintenance_interval))

    def release_maintenance_lock(self) -> None:
        """Nothing: the lock expires. Were it given back, every worker would clean in every interval."""


_JOB_ID = re.compile(r"[A-Za-z0-9_-]+")


def enqueue(
    queue: str,
    connection: redis.Redis,
    job_id: str,
    args: Mapping[str, Any],
    *,
    description: str,
    meta: Mapping[str, Any] | None = None,
    timeout: int = NO_TIMEOUT,
    result_ttl: int = RESULT_TTL,
    failure_ttl: int = FAILURE_TTL,
) -> bool:
    """Put a job into ``queue``, once.

    Args:
        queue: the queue's name, which is a node's name or ``_serverapps``.
        job_id: letters, digits, ``_`` and ``-``; new for each dispatch.
        args: JSON object, what :meth:`FedqJob.request` gives back.
        description, meta: what a dashboard shows (``meta`` is JSON).
        timeout: RQ's own limit in seconds, for display; the worker does not rely on it.
        result_ttl, failure_ttl: seconds that the finished or failed job stays visible.

    Returns:
        True if this call queued the job, also when the server's answer got lost on the way and the call was repeated;
        False if a job of that id exists already, in whatever state. Atomic: the job is stored and queued, or neither.
    """
    if not _JOB_ID.fullmatch(job_id):
        raise ValueError(f"a job id has letters, digits, '_' and '-' only, not {job_id!r}")
    job = FedqJob.create(
        TASK,
        kwargs=dict(args),
        connection=connection,
        id=job_id,
        description=description,
        meta=dict(meta or {}),
        timeout=timeout,
        result_ttl=result_ttl,
        failure_ttl=failure_ttl,
        status=JobStatus.QUEUED,
        origin=queue,
        serializer=JSONSerializer,
    )
    job.created_at = job.enqueued_at = now()
    # Tells our own job from somebody else's of that id when an answer got lost.
    mark = secrets.token_hex(8)
    target = FedqQueue(queue, connection)
    mapping = {**job.to_dict(include_result=False), "enqueue_mark": mark}
    pool = connection.connection_pool
    if pool not in _without_steps:
        flat = [item for pair in mapping.items() for item in pair]
        try:
            made = scripts.call(
                connection, "enqueue", [job.key, target.key], [target.redis_queues_keys, job_id, mark, *flat]
            )
            return as_text(made[0]) == "MADE"
        except (RelayUnavailable, NoPermissionError):
            _without_steps.add(pool)
    return _enqueue_without_step(connection, target, job, mapping, mark)


_without_steps: WeakSet[redis.ConnectionPool] = WeakSet()
"""Servers of queues alone, to which no SuperLink has given the steps, for users who may not use or load them."""


def _enqueue_without_step(
    connection: redis.Redis, target: FedqQueue, job: Job, mapping: Mapping[Any, Any], mark: str
) -> bool:
    """The same in four round trips, with nothing but RQ's own commands."""
    while True:
        # WATCH keeps redis-py from repeating the transaction by itself: a lost answer raises WatchError, and the next
        # round sees what became of it.
        with connection.pipeline(transaction=True) as pipe:
            try:
                pipe.watch(job.key)  # type: ignore[no-untyped-call]
                found = pipe.hget(job.key, "enqueue_mark")
                if found is not None or pipe.exists(job.key):
                    return found is not None and as_text(found) == mark
                pipe.multi()
                pipe.sadd(target.redis_queues_keys, target.key)
                pipe.hset(job.key, mapping=dict(mapping))
                pipe.rpush(target.key, job.id)
                pipe.execute()
            except WatchError:
                continue
            return True


def fetch(job_id: str, connection: redis.Redis) -> FedqJob | None:
    """The job of that id, or None."""
    try:
        job = FedqJob.fetch(job_id, connection=connection)
    except NoSuchJobError:
        return None
    assert isinstance(job, FedqJob)
    return job
