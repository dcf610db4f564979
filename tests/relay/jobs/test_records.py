"""What RQ, and with it rq-dashboard, shows of a job and of a worker."""

from __future__ import annotations

import pytest
import redis as redis_py
from rq import Queue, Worker
from rq.registry import FailedJobRegistry, FinishedJobRegistry, StartedJobRegistry

from tests.relay.jobs.conftest import Start
from tests.support import wait_until

ALL = ["fork", "run", "inline"]


@pytest.mark.parametrize("isolation", ALL)
def test_a_finished_job_tells_what_it_was(start: Start, redis: redis_py.Redis, isolation: str) -> None:
    federation = start(isolation=isolation)
    job_id = federation.put("nothing", description="run 7 · train · attempt 1")
    job = federation.wait_status(job_id, "finished")
    assert job.description == "run 7 · train · attempt 1"
    assert job.meta["outcome"] == "committed"
    assert job.meta["bytes"] == 5
    assert 0 <= job.meta["seconds"] < 5
    assert job.started_at is not None
    assert job.ended_at is not None
    assert job.worker_name == f"toy_{_host()}-{federation.process.pid}-0"
    assert redis.keys("rq:*result*") == []
    queue = Queue("toy", connection=redis)
    assert FinishedJobRegistry(queue=queue).get_job_ids() == [job_id]
    assert StartedJobRegistry(queue=queue).get_job_ids() == []
    assert 0 < redis.ttl(f"rq:job:{job_id}") <= 500
    assert redis.llen("rq:queue:toy:intermediate") == 0
    assert not redis.keys("rq:execution:*")


def test_an_outcome_with_a_failure_is_shown_as_failed_with_its_text(start: Start, redis: redis_py.Redis) -> None:
    federation = start()
    job_id = federation.put("error")
    job = federation.wait_status(job_id, "failed")
    result = job.latest_result()
    assert result is not None
    assert result.exc_string == "Traceback of the app"
    assert job.meta["outcome"] == "error 2"
    assert FailedJobRegistry(queue=Queue("toy", connection=redis)).get_job_ids() == [job_id]
    assert 0 < redis.ttl(f"rq:job:{job_id}") <= 3600
    assert federation.lines("died") == []


@pytest.mark.parametrize("isolation", ALL)
def test_a_running_job_is_shown_as_started_and_the_worker_as_busy(
    start: Start, redis: redis_py.Redis, isolation: str
) -> None:
    federation = start(isolation=isolation)
    job_id = federation.put("wait", "w")
    federation.wait_status(job_id, "started")
    (worker,) = Worker.all(connection=redis)
    assert worker.get_state() == "busy"
    assert worker.get_current_job_id() == job_id
    redis.set("toy:go:w", 1)
    federation.wait_status(job_id, "finished")
    wait_until(lambda: Worker.all(connection=redis)[0].get_state() == "idle", "the worker is idle")
    assert StartedJobRegistry(queue=Queue("toy", connection=redis)).get_job_ids() == []
    assert not redis.keys("rq:execution*")
    (worker,) = Worker.all(connection=redis)
    assert worker.successful_job_count == 1
    federation.stop()
    assert Worker.all(connection=redis) == []


def test_rq_can_stop_a_job_and_the_message_counts_as_crashed(start: Start, redis: redis_py.Redis) -> None:
    from rq.command import send_stop_job_command
    from rq.serializers import JSONSerializer

    federation = start()
    job_id = federation.put("sleep", "s")
    federation.wait_executed()
    federation.wait_status(job_id, "started")
    send_stop_job_command(redis, job_id, serializer=JSONSerializer)
    federation.wait_status(job_id, "failed")
    assert federation.lines("died") == ["s signal killed by a command to the RQ worker"]


def test_a_suspended_worker_takes_no_job_until_it_is_resumed(start: Start, redis: redis_py.Redis) -> None:
    from rq.suspension import resume, suspend

    suspend(redis)
    federation = start()
    job_id = federation.put("nothing")
    wait_until(lambda: Worker.all(connection=redis), "the worker is registered")
    assert federation.job(job_id).get_status(refresh=False).value == "queued"
    resume(redis)
    federation.wait_status(job_id, "finished")


def _host() -> str:
    import re
    import socket

    return re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())
