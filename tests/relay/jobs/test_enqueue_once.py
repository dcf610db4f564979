"""A job is queued once, however often it is asked for."""

from __future__ import annotations

import pytest
import redis as redis_py
from redis.retry import Retry

from fedq.relay import scripts
from fedq.relay.jobs import enqueue, fetch
from fedq.relay.jobs import job as job_module
from tests.support import RealServer


@pytest.fixture(autouse=True)
def _tidy(redis: redis_py.Redis) -> object:
    yield
    redis.delete("rq:queue:toy", *redis.keys("rq:job:toy_*"))


def test_a_second_enqueue_of_an_id_changes_nothing(redis: redis_py.Redis) -> None:
    assert enqueue("toy", redis, "toy_a_1", {"n": 1}, description="first", meta={"run": 7})
    assert not enqueue("toy", redis, "toy_a_1", {"n": 2}, description="second")
    assert redis.lrange("rq:queue:toy", 0, -1) == [b"toy_a_1"]
    job = fetch("toy_a_1", redis)
    assert job is not None
    assert job.request() == {"n": 1}
    assert job.description == "first"
    assert job.meta == {"run": 7}
    assert redis.sismember("rq:queues", "rq:queue:toy")


@pytest.mark.parametrize("word", ["EVALSHA", "EXEC"])
def test_an_answer_that_got_lost_does_not_queue_the_job_twice(
    word: str, server: RealServer, redis: redis_py.Redis
) -> None:
    class Forgetful(redis_py.UnixDomainSocketConnection):
        """Loses the connection right after the server has executed the step, or the transaction in its place."""

        lost = 0

        def send_packed_command(self, command: object, check_health: bool = True) -> None:
            super().send_packed_command(command, check_health)  # type: ignore[no-untyped-call]
            if word.encode() in b"".join(command if isinstance(command, list) else [command]) and Forgetful.lost == 0:  # type: ignore[list-item]
                Forgetful.lost += 1
                self.can_read(timeout=5)
                raise redis_py.ConnectionError("the answer got lost")

    pool = redis_py.ConnectionPool.from_url(server.url)
    pool.connection_class = Forgetful
    scripts.load(redis)
    if word == "EXEC":
        job_module._without_steps.add(pool)
    with redis_py.Redis(connection_pool=pool) as client:
        client.set_retry(Retry(redis_py.backoff.NoBackoff(), 3))  # type: ignore[no-untyped-call]
        assert enqueue("toy", client, "toy_b_1", {}, description="d") is True
    pool.disconnect()
    assert Forgetful.lost == 1
    assert redis.lrange("rq:queue:toy", 0, -1) == [b"toy_b_1"]


def test_an_id_of_a_finished_job_is_taken(redis: redis_py.Redis) -> None:
    redis.hset("rq:job:toy_c_1", mapping={"status": "finished", "data": ""})
    assert not enqueue("toy", redis, "toy_c_1", {}, description="d")
    assert redis.llen("rq:queue:toy") == 0


@pytest.mark.parametrize("job_id", ["", "a b", "a:b", "ä"])
def test_an_id_that_rq_would_not_take_is_refused(redis: redis_py.Redis, job_id: str) -> None:
    with pytest.raises(ValueError, match="job id"):
        enqueue("toy", redis, job_id, {}, description="d")
