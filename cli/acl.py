"""The access rule of a node: what a SuperNode needs on the relay's server, and no more.

Everything that a node may write lies under its own prefix, and RQ's keys of a queue carry the queue's name, which is
the node's. Ids begin with the name and ``_``, which names cannot contain, so that ``site`` does not cover ``site-a``.
A script's commands are checked like any other's, hence the commands of the relay's steps.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedq.relay.keys import Keys, check_node_name

# What RQ's worker and queue use (found by running them under a rule and reading ACL LOG).
RQ_COMMANDS = """
    ping hello client|setname client|info info multi exec discard watch unwatch subscribe unsubscribe blmove lmove
    lpop lrem lrange llen rpush lpush lpos hset hget hgetall hmget hdel hexists hincrby hincrbyfloat exists expire
    persist del get set zadd zrem zrange zrangebyscore zremrangebyscore zscore zcard sadd srem smembers scard xadd
    xrevrange xread xlen
"""

# What the node's steps and its dispatcher use beyond that.
RELAY_COMMANDS = """
    evalsha time type mget hlen xrange xdel xack xreadgroup xgroup|create xinfo|groups xtrim zrevrange zcount unlink
    pexpire pttl ttl sismember
"""


def node_rule(node: str, *, home: str = "0", setinfo: bool = True) -> list[str]:
    """The words of ``ACL SETUSER <node>`` after the password: keys, channel and commands of the node.

    ``setinfo``: the server knows CLIENT SETINFO (7.2 and later); on an older one the word makes the whole rule fail.
    Raises InvalidName.
    """
    check_node_name(node)
    keys = Keys(home)
    rq_keys = [
        f"~rq:queue:{node}",
        f"~rq:queue:{node}:intermediate",
        f"~rq:queue:{node}:intermediate:first_seen:{node}_*",
        *(f"~rq:{name}:{node}" for name in _REGISTRIES),
        f"~rq:worker:{node}_*",
        f"~rq:job:{node}_*",
        f"~rq:job::{node}_*:dependencies",
        f"~rq:execution:{node}_*",
        f"~rq:executions:{node}_*",
        f"~rq:results:{node}_*",
        *("%R~rq:suspended", "%R~rq:groups", "%R~rq:rl-keys"),
        *("%W~rq:clean_groups", "%W~rq:workers", "%W~rq:queues"),
    ]
    relay_keys = [
        f"~{keys.node(node)}*",
        *(f"%R~{pattern}" for pattern in (keys.nodes(), f"{keys.base}run:*", f"{keys.obj('')}*")),
    ]
    commands = [*RQ_COMMANDS.split(), *RELAY_COMMANDS.split(), *(["client|setinfo"] if setinfo else [])]
    return [
        *("resetkeys", "resetchannels", "-@all", f"&rq:pubsub:{node}_*"),
        *relay_keys,
        *rq_keys,
        *(f"+{name}" for name in dict.fromkeys(commands)),
    ]


def setuser(node: str, password: str, rule: Sequence[str]) -> list[str]:
    """The whole command, word by word. ``reset`` first, so that a repeated call leaves nothing of an older rule."""
    return ["ACL", "SETUSER", node, "reset", "on", f">{password}", *rule]


_REGISTRIES = (
    "wip", "finished", "failed", "deferred", "ready", "scheduled", "canceled", "clean_registries", "workers",
)  # fmt: skip
