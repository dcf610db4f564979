"""The step that makes an RQ job."""

from __future__ import annotations

import pytest
from redis.exceptions import ResponseError

from fedq.relay import scripts
from tests.relay.conftest import Steps


def test_a_job_is_made_whole_and_once_or_not_at_all(steps: Steps) -> None:
    redis = steps.relay.redis

    def make(job: str, mark: str, queue: str = "rq:queue:a") -> str:
        [made] = scripts.call(
            redis, "enqueue", [f"rq:job:{job}", queue], ["rq:queues", job, mark, "enqueue_mark", mark, "data", "d"]
        )
        return str(made.decode())

    assert [make("a_1", "x"), make("a_1", "x"), make("a_1", "y")] == ["MADE", "MADE", "TAKEN"]
    assert redis.lrange("rq:queue:a", 0, -1) == [b"a_1"]
    assert redis.hgetall("rq:job:a_1") == {b"enqueue_mark": b"x", b"data": b"d"}
    assert redis.smembers("rq:queues") == {b"rq:queue:a"}
    redis.set("rq:queue:b", "no list")
    redis.set("rq:job:a_3", "no hash")
    for job, queue in (("a_2", "rq:queue:b"), ("a_3", "rq:queue:c")):
        with pytest.raises(ResponseError, match="CORRUPT"):
            make(job, "x", queue)
    assert not redis.exists("rq:job:a_2", "rq:queue:c")
    redis.delete("rq:queue:a", "rq:queue:b", "rq:job:a_1", "rq:job:a_3", "rq:queues")
