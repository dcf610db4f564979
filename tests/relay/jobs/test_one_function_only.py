"""A job carries data. Whoever can write to a queue runs no code with it."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import redis as redis_py
from rq import Queue
from rq.serializers import JSONSerializer

from fedq.relay.jobs import TASK, FedqJob, ForeignJob, enqueue, fetch, perform
from tests.relay.jobs.conftest import Start


def stored(redis: redis_py.Redis, job_id: str, data: bytes, **fields: str) -> None:
    """A job hash as anybody with write access could make it."""
    mapping = {"data": data, "status": "queued", "origin": "toy", "created_at": "2026-01-01T00:00:00.000000Z", **fields}
    redis.hset(f"rq:job:{job_id}", mapping=mapping)  # type: ignore[arg-type]
    redis.rpush("rq:queue:toy", job_id)


def test_a_job_that_names_another_function_fails_visibly_and_runs_nothing(
    start: Start, redis: redis_py.Redis, tmp_path: Path
) -> None:
    federation = start()
    victim = tmp_path / "made-by-a-job"
    Queue("toy", connection=redis, serializer=JSONSerializer).enqueue(
        "os.mkdir", str(victim), job_id="toy_evil_1", result_ttl=10, failure_ttl=10
    )
    job = federation.wait_status("toy_evil_1", "failed")
    result = job.latest_result()
    assert result is not None
    assert "names the function 'os.mkdir'" in result.exc_string
    assert not victim.exists()
    assert federation.wait_status(federation.put("nothing"), "finished")


def test_a_pickled_job_is_refused_without_being_loaded(start: Start, redis: redis_py.Redis, tmp_path: Path) -> None:
    federation = start()
    victim = tmp_path / "made-by-a-pickle"

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.mkdir, (victim,))

    stored(redis, "toy_pickle_1", pickle.dumps((TASK, None, (Evil(),), {})))
    job = federation.wait_status("toy_pickle_1", "failed")
    result = job.latest_result()
    assert result is not None
    assert "is not JSON" in result.exc_string
    assert not victim.exists()


def test_callbacks_webhooks_and_retries_of_a_job_are_not_even_read(redis: redis_py.Redis) -> None:
    data = json.dumps([TASK, None, [], {}]).encode()
    stored(
        redis,
        "toy_hooks_1",
        data,
        success_callback_name="os.abort",
        failure_callback_name="os.abort",
        stopped_callback_name="os.abort",
        retries_left="5",
        repeats_left="5",
        repeat_intervals="[1]",
        group_id="g",
        rate_limit_key="k",
        rate_limit_concurrency="1",
        webhooks=json.dumps([{"url": "http://127.0.0.1:1/", "job_status": "finished"}]),
    )
    job = fetch("toy_hooks_1", redis)
    assert job is not None
    assert job.success_callback is None
    assert job.failure_callback is None
    assert job.stopped_callback is None
    assert not job.webhooks
    assert not job.should_retry
    assert not job.repeats_left
    assert not job.group_id
    assert not job.has_rate_limit
    redis.delete("rq:job:toy_hooks_1", "rq:queue:toy")


def test_a_job_whose_hash_is_nonsense_does_not_end_the_worker(start: Start, redis: redis_py.Redis) -> None:
    federation = start()
    redis.hset("rq:job:toy_bad_1", mapping={"data": "x", "status": "no such status"})
    redis.rpush("rq:queue:toy", "toy_bad_1", "toy_missing_1")
    assert federation.wait_status(federation.put("nothing"), "finished")
    assert redis.llen("rq:queue:toy:intermediate") == 0


def test_outside_of_a_worker_of_ours_a_job_does_nothing(redis: redis_py.Redis) -> None:
    enqueue("toy", redis, "toy_x_1", {"a": 1}, description="d")
    job = fetch("toy_x_1", redis)
    assert job is not None
    assert job.request() == {"a": 1}
    with pytest.raises(ForeignJob, match="only a worker of fedq"):
        job.perform()
    with pytest.raises(ForeignJob, match="only a worker of fedq"):
        perform(a=1)
    redis.delete("rq:job:toy_x_1", "rq:queue:toy")


def test_a_bound_handler_performs_the_job_and_no_other(redis: redis_py.Redis) -> None:
    job = FedqJob.create(TASK, kwargs={"a": 1}, connection=redis, id="toy_y_1")
    assert isinstance(job, FedqJob)
    job.handler = lambda bound: bound.request()
    assert job.perform() == {"a": 1}
    other = FedqJob.create("os.getpid", connection=redis, id="toy_z_1")
    assert isinstance(other, FedqJob)
    other.handler = lambda bound: "ran"
    with pytest.raises(ForeignJob, match=r"os\.getpid"):
        other.perform()
