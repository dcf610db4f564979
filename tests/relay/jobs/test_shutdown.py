"""SIGTERM: a running job may finish within the grace time; then it is released and killed."""

from __future__ import annotations

import signal

import pytest
import redis as redis_py

from tests.relay.jobs.conftest import Start
from tests.support import gone, wait_until

ALL = ["fork", "run", "inline"]


@pytest.mark.parametrize("isolation", ALL)
def test_a_running_job_finishes_and_no_other_is_begun(start: Start, redis: redis_py.Redis, isolation: str) -> None:
    federation = start(isolation=isolation, supervised=isolation == "inline")
    running = federation.put("wait", "w")
    federation.wait_executed()
    waiting = federation.put("nothing", "later")
    federation.process.send_signal(signal.SIGTERM)
    redis.set("toy:go:w", 1)
    assert federation.process.wait(15) == 0
    assert federation.job(running).get_status(refresh=False).value == "finished"
    assert federation.job(waiting).get_status(refresh=False).value == "queued"
    assert redis.lrange("rq:queue:toy", 0, -1) == [waiting.encode()]


@pytest.mark.parametrize("isolation", ALL)
def test_what_does_not_finish_in_time_is_released_and_killed(start: Start, isolation: str) -> None:
    federation = start(isolation=isolation, supervised=isolation == "inline", grace=0.5)
    job_id = federation.put("loop", "x")
    horse = federation.wait_executed()["pid"]
    federation.process.send_signal(signal.SIGTERM)
    federation.process.wait(15)
    wait_until(lambda: federation.lines("released") == ["x"], "the claim is released")
    wait_until(lambda: federation.job(job_id).meta.get("outcome") == "released", "the job is shown as released")
    assert federation.lines("died") == []
    assert gone(horse)


@pytest.mark.parametrize("isolation", ALL)
def test_an_idle_worker_ends_at_once(start: Start, isolation: str) -> None:
    federation = start(isolation=isolation)
    federation.wait_status(federation.put("nothing"), "finished")
    federation.process.send_signal(signal.SIGTERM)
    assert federation.process.wait(3) == 0


def test_a_job_never_gets_lost_between_queue_and_worker_when_workers_are_stopped(
    start: Start, redis: redis_py.Redis
) -> None:
    federation = start()
    federation.wait_status(federation.put("nothing"), "finished")
    jobs = [federation.put("nothing") for _ in range(20)]
    federation.process.send_signal(signal.SIGTERM)
    assert federation.process.wait(10) == 0
    left = {entry.decode() for entry in redis.lrange("rq:queue:toy", 0, -1)}
    done = {job for job in jobs if federation.job(job).get_status(refresh=False).value == "finished"}
    assert left | done == set(jobs)
    assert redis.llen("rq:queue:toy:intermediate") == 0
