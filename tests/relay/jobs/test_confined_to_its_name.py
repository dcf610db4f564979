"""A worker touches only keys of its queue's name, and so can be confined to them by an ACL."""

from __future__ import annotations

import redis as redis_py

from fedq.relay.jobs import enqueue
from tests.relay.jobs.conftest import Start
from tests.support import RealServer, wait_until

RULE = """
    on >secret resetkeys resetchannels -@all &rq:pubsub:toy_*
    ~rq:queue:toy ~rq:queue:toy:intermediate ~rq:queue:toy:intermediate:first_seen:toy_*
    ~rq:wip:toy ~rq:finished:toy ~rq:failed:toy ~rq:clean_registries:toy ~rq:workers:toy
    ~rq:worker:toy_* ~rq:job:toy_* ~rq:execution:toy_* ~rq:executions:toy_* ~rq:results:toy_*
    %R~rq:suspended %W~rq:workers %W~rq:queues
    +ping +hello +client|setname +multi +exec +discard +watch +unwatch
    +subscribe +unsubscribe +blmove +lpop +lrem +lrange +rpush +hset +hget +hgetall +hincrby +hincrbyfloat
    +exists +expire +persist +del +get +set +zadd +zrem +zrange +zrangebyscore +zremrangebyscore
    +sadd +srem +smembers +xadd
"""


def test_a_worker_lives_within_the_rights_to_its_own_queue(
    start: Start, server: RealServer, redis: redis_py.Redis
) -> None:
    rule = RULE.split()
    version = str(redis.info("server")["redis_version"]).split(".")
    if [int(part) for part in version[:2]] >= [7, 2]:  # older ones do not know the word
        rule.append("+client|setinfo")
    redis.execute_command("ACL", "SETUSER", "toy", *rule)  # type: ignore[no-untyped-call]
    redis.acl_log_reset()
    url = server.url.replace("unix://", "unix://toy:secret@")
    federation = start(rq_url=url, timing={"heartbeat": 1.0, "renew": 0.2}, maintenance=1)
    # A job that was left in the intermediate queue, for maintenance to look at.
    redis.rpush("rq:queue:toy:intermediate", "toy_lost_1")
    redis.hset("rq:job:toy_lost_1", mapping={"data": "x", "status": "queued", "origin": "toy"})
    with redis_py.Redis.from_url(url) as confined:
        assert enqueue("toy", confined, "toy_a_1", {"do": "nothing", "name": "a"}, description="d")
        assert not enqueue("toy", confined, "toy_a_1", {"do": "nothing", "name": "a"}, description="d")
    federation.wait_status("toy_a_1", "finished")
    federation.wait_status(federation.put("crash"), "failed")
    federation.wait_status(federation.put("late", seconds=2.5), "finished")
    wait_until(lambda: redis.exists("rq:queue:toy:intermediate:first_seen:toy_lost_1"), "maintenance was done")
    assert federation.stop() == 0
    # Enqueuing tries the step first, and goes on without it where it may not.
    assert {entry["object"] for entry in redis.acl_log()} == {"evalsha"}


def test_every_key_of_a_worker_bears_the_name_of_its_queue(start: Start, redis: redis_py.Redis) -> None:
    federation = start()
    federation.wait_status(federation.put("nothing"), "finished")
    federation.wait_status(federation.put("crash"), "failed")
    common = {b"rq:workers", b"rq:queues"}
    keys = [key for key in redis.keys("rq:*") if key not in common]
    assert keys
    assert [key for key in keys if b":toy_" not in key and key.split(b":")[2] != b"toy"] == []
