"""The worker: takes jobs of one queue, one at a time, and sees them through.

It is an RQ worker to everybody who looks (``rq info``, rq-dashboard), with RQ's reliable dequeue and records. What
differs is whom it trusts with what: a job is data, the process that executes it is watched, renewed and answered for by
the worker, and a server that is away is waited for.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import re
import signal
import socket
import time
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from rq.executions import Execution
from rq.serializers import JSONSerializer
from rq.worker import Worker

from fedq.relay.errors import RelayUnavailable
from fedq.relay.jobs.child import ChildContext
from fedq.relay.jobs.commands import Commands
from fedq.relay.jobs.dequeue import Dequeue
from fedq.relay.jobs.frames import Wakeup
from fedq.relay.jobs.isolation import executor_for
from fedq.relay.jobs.job import FedqJob, FedqQueue, fetch
from fedq.relay.jobs.processes import poll
from fedq.relay.jobs.records import Records
from fedq.relay.jobs.watch import Ended, Timing, Watch
from fedq.relay.jobs.work import Assignment, Cause, CauseKind, Isolation, Work
from fedq.relay.pauses import Pauses

__all__ = ["AppWorker", "worker_name"]

log = logging.getLogger("fedq.worker")
T = TypeVar("T")

WORKER_TTL = 60
SOCKET_TIMEOUT = 5.0
KEEPALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3}
"""Of TCP connections that are silent: seconds until the first question, between questions, and how many."""
SHOW = 5.0
"""Seconds between heartbeats of a worker that is not blocked, and so after which ``rq suspend`` is noticed."""


def worker_name(queue: str, number: int = 0, *, host: str | None = None, pid: int | None = None) -> str:
    """The name of a worker: ``<queue>_<host>-<pid>-<number>``. Queue names hold no ``_`` but a leading one."""
    host = re.sub(r"[^A-Za-z0-9-]", "-", host or socket.gethostname())
    return f"{queue}_{host}-{pid or os.getpid()}-{number}"


class AppWorker(Worker):
    """A worker of one queue, with one slot.

    Args:
        source: makes assignments of jobs.
        queue: the queue's name: a node's name, or ``_serverapps``.
        connection: RQ's server. Only its settings are used; the worker opens connections of its own.
        isolation: where assignments are executed.
        number: which slot of this service it is.
        grace: seconds that a running job gets after SIGTERM.
        on_free: called after each job (and at the start), when the worker has become free.
        context: the supervisor's, if there is one: not inherited by what executes apps, and told of processes that
            outlive this one for a moment to speak for it.

    :meth:`work` returns after SIGTERM or SIGINT. Losing the server ends nothing: the worker waits, with pauses of at
    most a second.
    """

    max_connection_wait_time = 1.0

    def __init__(
        self,
        source: Work,
        *,
        queue: str,
        connection: redis.Redis,
        isolation: Isolation | str = Isolation.FORK,
        number: int = 0,
        grace: float = 30.0,
        timing: Timing | None = None,
        maintenance_interval: int = 60,
        on_free: Callable[[], None] | None = None,
        context: ChildContext | None = None,
    ) -> None:
        self.source = source
        self.timing = timing or Timing()
        self.grace = grace
        self.stop_at: float | None = None
        """When a running job is killed, on the monotonic clock; set by the first signal."""
        self.context = context
        self._on_free = on_free
        self.wakeup = Wakeup()
        client = _own_client(connection)
        target = FedqQueue(queue, client)
        target.maintenance_interval = maintenance_interval
        super().__init__(
            [target],
            name=worker_name(queue, number),
            connection=client,
            worker_ttl=WORKER_TTL,
            maintenance_interval=maintenance_interval,
            job_monitoring_interval=int(self.timing.heartbeat),
            job_class=FedqJob,
            queue_class=FedqQueue,
            serializer=JSONSerializer,
            prepare_for_work=False,
        )
        self.log = log
        self.hostname, self.pid = socket.gethostname(), os.getpid()
        self.records = Records(self)
        self.isolation = Isolation(isolation)
        self.executor = executor_for(self.isolation, self)
        self.commands = Commands(client, self.name)
        self._dequeue = Dequeue(client, target.key, target.intermediate_queue_key, self.dequeue_timeout)
        self._job: FedqJob | None = None
        self._execution: Execution | None = None
        self._born = False
        self._shown = 0.0
        self._unshown = False

    # -- RQ's hooks that do not apply --------------------------------------------------------------------------------

    def _set_connection(self, connection: redis.Redis) -> redis.Redis:
        """The connection is ours and has its time-outs already."""
        return connection

    # -- the loop ----------------------------------------------------------------------------------------------------

    def work(self, *_: Any, **__: Any) -> bool:
        """Work until told to stop; whether any job was done."""
        self._install_signal_handlers()
        self.executor.open()
        # What is there now is shared with the children as long as nobody's collector touches it.
        gc.collect()
        gc.freeze()
        done = 0
        pauses = Pauses()
        log.info("worker %s is ready, isolation %s", self.name, self.isolation.value)
        try:
            while not self.stopping:
                try:
                    done += self._once()
                    pauses.reset()
                except (RedisError, RelayUnavailable, OSError) as error:
                    self._wait_for_server(error, pauses)
        finally:
            self._leave()
        return bool(done)

    def _once(self) -> bool:
        """One turn of the loop; whether a job was done."""
        if not self._born:
            self._show(self.records.born)
            self._born = True
            self._free()
        self.commands.open()
        if time.monotonic() >= self._shown + SHOW:
            self._shown = time.monotonic()
            if self._show(self.records.idle):
                self._sleep(1.0)
                self._shown = 0.0
                return False
        if self.should_run_maintenance_tasks:
            self.records.maintain()
        job_id = self._next()
        if job_id is None:
            return False
        try:
            job = fetch(job_id, self.connection)
        except RedisError:
            raise
        except Exception:
            log.exception("job %s cannot be read and is left alone", job_id)
            job = None
        if job is None:  # or it has expired or was deleted meanwhile
            self.queues[0].intermediate_queue.remove(job_id)
            return False
        try:
            self._perform(job)
        finally:
            self._job = self._execution = None
            self._free()
        return True

    def _show(self, show: Callable[[], T]) -> T | None:
        """Show the worker. A server whose memory is full does not show it, but does not keep it from working either."""
        try:
            shown = show()
        except redis.OutOfMemoryError as error:
            if not self._unshown:
                self._unshown = True
                log.warning(
                    "worker %s works on, but cannot be shown until the server has memory again: %s", self.name, error
                )
            return None
        self._unshown = False
        return shown

    def _next(self) -> str | None:
        """Wait for a job; None when there is something else to do first."""
        try:
            return self._wait_for_job()
        except redis.OutOfMemoryError:
            # Moving needs memory, taking does not. Were the worker to die now, reconciliation would find the message.
            reply = self.connection.lpop(self.queues[0].key)
            if not isinstance(reply, bytes):
                self._sleep(1.0)
                return None
            return reply.decode()

    def _wait_for_job(self) -> str | None:
        self._dequeue.start()
        while True:
            interval = self.executor.interval()
            timeout = self._dequeue.left if interval is None else min(interval, self._dequeue.left)
            ready = poll([self._dequeue.fileno(), *self.executor.fds(), *self.signal_fds()], timeout)
            if self._dequeue.fileno() in ready:
                return self._dequeue.result()
            self.hear_commands()
            if self.stopping:
                return self._dequeue.cancel()
            self.executor.tick()
            self._dequeue.check()

    def _perform(self, job: FedqJob) -> None:
        """See one job through to its records."""
        self._job = job

        def begun() -> None:
            try:
                self._execution = self.records.started(job)
            except RedisError as error:  # shown late or never, but executed
                log.warning("job %s could not be recorded as started: %s", job.id, error)

        def heartbeat() -> None:
            if self._execution is not None:
                self.records.running(job, self._execution)

        try:
            job.request()
            assignment = self.source.assignment(job)
            self.records.taken(job)
        except Exception as error:
            log.exception("job %s refused", job.id)
            text = str(error) if type(error).__module__.startswith("fedq.") else traceback.format_exc()
            self._record(lambda: self.records.failed(job, None, text))
            return
        log.info("job %s: %s", job.id, job.description)
        watch = Watch(assignment, self.timing, wake=self.wakeup.wake, heartbeat=heartbeat, limit=assignment.time_limit)
        try:
            try:
                ended = self.executor.run(assignment, begun, watch)
            except Exception as error:
                log.exception("job %s could not be executed", job.id)
                cause = Cause(CauseKind.EXIT, f"could not be executed: {error}", traceback=traceback.format_exc())
                ended = Ended(cause=cause)
            finally:
                watch.end(5.0 if self.stopping else None)
            text = self.answer(assignment, ended)
            self.record(job, self._execution, ended, text)
        finally:
            self.executor.settle()

    def answer(self, assignment: Assignment, ended: Ended) -> str:
        """Speak for an execution that came to no outcome; the text for the job's records."""
        if ended.outcome is not None:
            return ended.outcome.failure or ""
        if ended.released:
            return self._speak(assignment.released) or "released: the worker shuts down"
        cause = ended.cause
        assert cause is not None
        log.warning("run %s: %s", assignment.group, cause.detail)
        return self._speak(lambda: assignment.died(cause)) or cause.detail

    def record(self, job: FedqJob, execution: Execution | None, ended: Ended, text: str) -> None:
        """Write RQ's records of the end of a job, with :meth:`answer`'s text if it failed."""
        if ended.outcome is not None:
            outcome = ended.outcome
            self._record(lambda: self.records.finished(job, execution, outcome))
            return
        job.meta["outcome"] = "released" if ended.cause is None else ended.cause.kind.value
        self._record(lambda: self.records.failed(job, execution, text))

    def _speak(self, action: Callable[[], str]) -> str:
        try:
            return self._insist(action) or ""
        except Exception:
            log.exception("a message could not be answered; reconciliation will find it")
            return traceback.format_exc()

    def _record(self, action: Callable[[], None]) -> None:
        try:
            self._insist(action)
        except Exception as error:  # the message is settled whatever RQ shows
            log.warning("the records of a job could not be written: %s: %s", type(error).__name__, error)

    def _insist(self, action: Callable[[], T]) -> T | None:
        """``action``, again and again while the server is away; None if the worker has to stop meanwhile."""
        pauses = Pauses()
        while True:
            try:
                return action()
            except (redis.ConnectionError, redis.TimeoutError, RelayUnavailable) as error:
                if self.stop_at is not None and time.monotonic() >= self.stop_at:
                    log.warning("gave up waiting for the server: %s", error)
                    return None
                self._wait_for_server(error, pauses)

    def _wait_for_server(self, error: Exception, pauses: Pauses) -> None:
        """Pause before the next attempt."""
        if not pauses.begun:
            log.warning("worker %s waits for the server: %s", self.name, error)
        self._dequeue.abandon()
        self.commands.close()
        self.connection.connection_pool.disconnect()
        self._born = False  # it may have forgotten us
        self._sleep(pauses.next())

    def _sleep(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not self.stopping and (left := deadline - time.monotonic()) > 0:
            interval = self.executor.interval()
            poll([*self.executor.fds(), *self.signal_fds()], left if interval is None else min(left, interval))
            self.wakeup.drain()
            self.executor.tick()

    def _free(self) -> None:
        if self._on_free is not None and not self.stopping:
            with contextlib.suppress(OSError):
                self._on_free()

    def _leave(self) -> None:
        self._dequeue.abandon()
        self.executor.close()
        if self._born:
            with contextlib.suppress(RedisError, OSError):
                self.records.dead()
        self.commands.close()
        self.connection.close()
        self.wakeup.close()
        gc.unfreeze()
        log.info("worker %s has ended", self.name)

    # -- signals and commands ----------------------------------------------------------------------------------------

    @property
    def stopping(self) -> bool:
        """Whether the worker has been told to stop."""
        return self.stop_at is not None

    def _install_signal_handlers(self) -> None:
        signal.signal(signal.SIGINT, self.request_stop)
        signal.signal(signal.SIGTERM, self.request_stop)

    def request_stop(self, signum: int | None = None, frame: object = None) -> None:
        """Stop after the running job, for which :attr:`grace` seconds are left; at once when asked again after 1 s."""
        now = time.monotonic()
        if self.stop_at is None:
            self.stop_at = now + self.grace
            self._stop_requested = True
            self._asked_to_stop = now
        elif now >= self._asked_to_stop + 1.0:
            self.stop_at = now
        self.wakeup.wake()

    _asked_to_stop = 0.0

    def signal_fds(self) -> list[int]:
        """Descriptors that end every wait: signals and commands."""
        return [self.wakeup.fileno(), *self.commands.fds()]

    def hear_commands(self) -> bool:
        """Take what arrived there; whether the running job is to be killed."""
        self.wakeup.drain()
        kill = False
        for command in self.commands.receive():
            match command.get("command"):
                case "shutdown":
                    self.request_stop()
                case "kill-horse":
                    kill = True
                case "stop-job":
                    kill |= self._job is not None and command.get("job_id") == self._job.id
                case "stop-execution":
                    kill |= command.get("execution_id") in self.executions
        return kill and self._job is not None

    @property
    def job(self) -> FedqJob | None:
        """The running job."""
        return self._job

    def shown_as(self, identity: str) -> None:
        """The running job was shown as started by another process, under this id of its execution."""
        assert self._job is not None
        self._execution = self.records.execution(self._job, identity)

    # -- for the executors -------------------------------------------------------------------------------------------

    def group_alive(self, group: str) -> bool:
        """Ask the source whether a kept process is still of use; yes, if it cannot be told."""
        try:
            return self.source.alive(group)
        except Exception as error:
            log.debug("could not ask for run %s: %s", group, error)
            return True

    def forked(self) -> None:
        """In a forked child: let go of what belongs to the worker."""
        self._dequeue.forget()
        self.commands.forget()
        self.executor.forget()
        self.wakeup.close()
        if self.context is not None:
            self.context.close()
        self.source.forked()


def _own_client(connection: redis.Redis) -> redis.Redis:
    """A client of the same server whose commands fail soon: the worker itself waits, where signals reach it."""
    pool = connection.connection_pool
    settings = dict(pool.connection_kwargs)
    settings.update(
        retry=Retry(NoBackoff(), 1),
        socket_timeout=SOCKET_TIMEOUT,
        socket_connect_timeout=SOCKET_TIMEOUT,
        decode_responses=False,
    )
    if issubclass(pool.connection_class, redis.Connection):
        # It waits for a job without a word: of a server whose machine is lost, or was replaced, only the kernel hears.
        options = {getattr(socket, name, None): seconds for name, seconds in KEEPALIVE.items()}
        settings["socket_keepalive_options"] = {key: value for key, value in options.items() if key is not None}
    for name in ("maint_notifications_config", "maint_notifications_pool_handler"):
        settings.pop(name, None)
    return redis.Redis(connection_pool=redis.ConnectionPool(connection_class=pool.connection_class, **settings))
