"""``fedq nodes acl``: the rule that confines a node to its own keys."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis as redis_py
from redis.exceptions import NoPermissionError

from fedq.cli.acl import node_rule
from tests.cli.conftest import Call
from tests.support import RealServer


def test_the_rule_is_a_command_that_the_server_takes(call: Call, own_server: RealServer) -> None:
    line = call("nodes", "acl", "clinic-a", "--password", "secret", url=own_server.url).succeeds().out.strip()
    assert line.startswith("ACL SETUSER clinic-a reset on >secret ")
    with own_server.client() as client:
        client.execute_command(*line.split(" "))
        assert "clinic-a" in client.acl_users()


def test_the_rule_needs_no_server_and_the_password_is_new_each_time(call: Call) -> None:
    lines = {call("nodes", "acl", "a", url="redis://127.0.0.1:1").succeeds().out for _ in range(2)}
    assert len(lines) == 2
    # On Redis 7.0 this word makes the whole command fail.
    assert "setinfo" not in "".join(lines)


def test_apply_sets_the_rule_and_a_repeat_leaves_nothing_of_the_old_one(call: Call, own_server: RealServer) -> None:
    call("nodes", "acl", "a", "--apply", "--password", "one", url=own_server.url).succeeds()
    said = call("nodes", "acl", "a", "--apply", "--json", url=own_server.url).succeeds().json
    assert said["applied"]
    with own_server.client() as client:
        user = client.acl_getuser("a")
    assert len(user["passwords"]) == 1
    url = own_server.url.replace("unix://", f"unix://a:{said['password']}@")
    with redis_py.Redis.from_url(url) as node:
        assert node.ping()


def test_apply_without_a_server_fails(call: Call) -> None:
    call("nodes", "acl", "a", "--apply", url="redis://127.0.0.1:1").fails(1, "no Redis server answers")


def test_a_name_that_no_node_can_have_gets_no_rule(call: Call) -> None:
    call("nodes", "acl", "a b", url="redis://127.0.0.1:1").fails(1, "'a b'")


@pytest.fixture(scope="module")
def confined_url() -> Iterator[str]:
    """The address for the user ``site``, whose name is the beginning of another node's."""
    with RealServer() as server, server.client() as client:
        client.execute_command("ACL", "SETUSER", "site", "on", ">word", *node_rule("site", setinfo=False))
        yield server.url.replace("unix://", "unix://site:word@")


@pytest.fixture
def node(confined_url: str) -> Iterator[redis_py.Redis]:
    with redis_py.Redis.from_url(confined_url) as client:
        yield client


@pytest.mark.parametrize(
    "command",
    [
        "HSET fedq:{0}:node:site-a:claims m x",
        "GET fedq:{0}:node:site-a:alive",
        "XADD fedq:{0}:node:other:inbox * kind stop",
        "HSET fedq:{0}:run:7 status finished",
        "DEL fedq:{0}:obj:abc",
        "SADD fedq:{0}:nodes evil",
        "XREAD STREAMS fedq:{0}:wake 0",
        "LPUSH rq:queue:site-a x",
        "LPUSH rq:queue:_serverapps x",
        "HGETALL rq:job:site-a_1",
        "HSET rq:worker:site-a_1 x y",
        "SMEMBERS rq:workers",
        "KEYS *",
        "FLUSHALL",
        "CONFIG GET requirepass",
        "EVAL return 0",
        "SCRIPT LOAD return",
        "ACL LIST",
        "SUBSCRIBE rq:pubsub:site-a_1",
    ],
)
def test_a_node_cannot(node: redis_py.Redis, command: str) -> None:
    with pytest.raises(NoPermissionError):
        node.execute_command(*command.split(" "))


@pytest.mark.parametrize(
    "command",
    [
        "HSET fedq:{0}:node:site:claims m x",
        "HGET fedq:{0}:run:7 status",
        "GET fedq:{0}:obj:abc",
        "RPUSH rq:queue:site x",
        "HSET rq:job:site_1 x y",
        "SADD rq:workers rq:worker:site_1",
    ],
)
def test_a_node_can(node: redis_py.Redis, command: str) -> None:
    node.execute_command(*command.split(" "))
