"""RQ's records of a job: what rq-dashboard and ``rq info`` show.

The worker's parent process writes all of it, in one round trip when a job has been running for a moment (most have
ended by then) and one when it ends: the process that runs the app needs no connection to RQ, and the answer of a
message is committed before its job is shown as finished.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import redis
from rq import worker_registration
from rq.executions import Execution
from rq.job import JobStatus
from rq.registry import FailedJobRegistry, FinishedJobRegistry, StartedJobRegistry
from rq.suspension import WORKERS_SUSPENDED
from rq.utils import now, utcformat
from rq.worker.base import WorkerStatus

from fedq.relay.jobs.job import FAILURE_TTL, RESULT_TTL, FedqJob, FedqQueue
from fedq.relay.jobs.work import Outcome

if TYPE_CHECKING:
    from fedq.relay.jobs.worker import AppWorker

__all__ = ["Records"]


class Records:
    """The records of one worker. Every method is one round trip, and may be repeated after a lost connection."""

    def __init__(self, worker: AppWorker) -> None:
        self.worker = worker

    def born(self) -> None:
        """Register the worker, over one of the same name: that has the same host and process id, so it is dead."""
        worker = self.worker
        worker.birth_date = worker.last_heartbeat = now()
        with worker.connection.pipeline(transaction=False) as pipe:
            pipe.client_setname(worker.name)
            pipe.delete(worker.key)
            pipe.hset(worker.key, mapping=self._identity())
            worker_registration.register(worker, pipe)
            worker.set_state(WorkerStatus.STARTED, pipeline=pipe)
            worker.heartbeat(pipeline=pipe)
            pipe.execute(raise_on_error=True)

    def dead(self) -> None:
        """Take the worker off the list."""
        self.worker.register_death()  # type: ignore[no-untyped-call]

    def idle(self) -> bool:
        """Heartbeat and state; returns whether ``rq suspend`` is in force."""
        worker = self.worker
        with worker.connection.pipeline(transaction=False) as pipe:
            self._idle(pipe)
            pipe.exists(WORKERS_SUSPENDED)
            return bool(pipe.execute()[-1])

    def taken(self, job: FedqJob) -> None:
        """The job's execution begins now. Noted here only: a round trip later it may be over."""
        job.started_at = now()
        job.worker_name = self.worker.name

    def started(self, job: FedqJob) -> Execution:
        """The job is being executed."""
        worker = self.worker
        since = job.started_at
        with worker.connection.pipeline() as pipe:
            ttl = worker.get_heartbeat_ttl(job)
            execution = Execution.create(job, ttl, pipeline=pipe, worker_name=worker.name)
            worker.executions[execution.id] = execution
            worker.set_state(WorkerStatus.BUSY, pipeline=pipe)
            worker.heartbeat(ttl, pipeline=pipe)
            job.prepare_for_execution(worker.name, pipeline=pipe)
            if since is not None:
                job.started_at = since
                pipe.hset(job.key, "started_at", utcformat(since))
            pipe.persist(job.key)
            pipe.lrem(FedqQueue(job.origin, worker.connection).intermediate_queue_key, 1, job.id)
            pipe.execute()
        return execution

    def execution(self, job: FedqJob, identity: str) -> Execution:
        """The execution of that id, in another process than the one that started it."""
        execution = Execution(identity, job.id, self.worker.connection, worker_name=self.worker.name)
        execution._job = job
        if job.started_at is not None:
            execution.created_at = job.started_at
        return execution

    def running(self, job: FedqJob, execution: Execution) -> None:
        """The job is still being executed."""
        self.worker.maintain_heartbeats(job, execution)

    def finished(self, job: FedqJob, execution: Execution | None, outcome: Outcome) -> None:
        """The job is done; shown as failed if the outcome says so."""
        job.meta.update(outcome.meta)
        job.meta["outcome"] = outcome.status
        if outcome.description is not None:
            job.description = outcome.description
        if outcome.failure is not None:
            self.failed(job, execution, outcome.failure)
            return
        worker = self.worker
        self._end(job)
        ttl = job.get_result_ttl(RESULT_TTL)
        with worker.connection.pipeline() as pipe:
            # What the job was made with is there already, and what it came to stands in its meta: a stream with its
            # result besides would cost more than everything else together.
            job._status = JobStatus.FINISHED
            facts = {"status": JobStatus.FINISHED.value, "worker_name": worker.name}
            if job.description is not None:
                facts["description"] = job.description
            job.finished_job_registry.add(job, ttl, pipe)
            worker.increment_successful_job_count(pipeline=pipe)
            self._close(pipe, job, execution, facts)
            job.cleanup(ttl, pipeline=pipe, remove_from_queue=False)
            pipe.execute()

    def failed(self, job: FedqJob, execution: Execution | None, text: str) -> None:
        """The job has failed, with a text for its ``exc_info``."""
        worker = self.worker
        self._end(job)
        job.failure_ttl = FAILURE_TTL if job.failure_ttl is None else job.failure_ttl
        with worker.connection.pipeline() as pipe:
            job.set_status(JobStatus.FAILED, pipeline=pipe)
            job._handle_failure(
                text,
                pipeline=pipe,
                worker_name=worker.name,
                execution_id=execution.id if execution else None,
                execution_started_at=execution.created_at if execution else job.started_at,
                execution_ended_at=job.ended_at,
            )
            worker.increment_failed_job_count(pipe)
            self._close(pipe, job, execution)
            pipe.execute()

    def maintain(self) -> None:
        """What RQ has to tidy: expired entries, jobs whose worker died, workers that are gone. Once per interval."""
        worker = self.worker
        queue = worker.queues[0]
        if queue.acquire_maintenance_lock():
            for registry in (FinishedJobRegistry, StartedJobRegistry, FailedJobRegistry):
                registry(queue=queue, job_class=FedqJob).cleanup()
            worker_registration.clean_worker_registry(queue)
            queue.intermediate_queue.cleanup(worker, queue)
        worker.last_cleaned_at = now()  # type: ignore[assignment]

    # -- parts -------------------------------------------------------------------------------------------------------

    def _identity(self) -> dict[Any, Any]:
        return {key: "" if value is None else value for key, value in self.worker.serialize().items()}

    def _idle(self, pipe: redis.client.Pipeline) -> None:
        worker = self.worker
        worker.set_state(WorkerStatus.IDLE, pipeline=pipe)
        # The whole identity: the key has expired if the server was away for long.
        worker.last_heartbeat = now()
        pipe.hset(worker.key, mapping=self._identity())
        worker_registration.register(worker, pipe)
        worker.heartbeat(pipeline=pipe)

    @staticmethod
    def _end(job: FedqJob) -> None:
        job.ended_at = now()
        if job.started_at is None:
            job.started_at = job.ended_at
        job.meta["seconds"] = round((job.ended_at - job.started_at).total_seconds(), 4)

    def _close(
        self,
        pipe: redis.client.Pipeline,
        job: FedqJob,
        execution: Execution | None,
        facts: Mapping[str, str] | None = None,
    ) -> None:
        worker = self.worker
        assert job.started_at is not None
        assert job.ended_at is not None
        times = {"started_at": utcformat(job.started_at), "ended_at": utcformat(job.ended_at)}
        mapping: dict[Any, Any] = {
            **(facts or {}),
            **times,
            "meta": job._serialize_meta(),
            "last_heartbeat": utcformat(now()),
        }
        pipe.hset(job.key, mapping=mapping)
        if execution is not None:
            worker.cleanup_execution(job, pipeline=pipe, execution=execution)
        else:  # the worker was never shown as busy
            pipe.lrem(FedqQueue(job.origin, worker.connection).intermediate_queue_key, 1, job.id)
        worker.increment_total_working_time(job.ended_at - job.started_at, pipe)
        if execution is not None:
            self._idle(pipe)
