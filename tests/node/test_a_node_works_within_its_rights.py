"""Under the rule that ``fedq nodes acl`` prints, a SuperNode does all its work, and is refused nothing on the way."""

from __future__ import annotations

import numpy as np
import pytest

from fedq.apps import ErrorCode
from fedq.cli.acl import node_rule
from fedq.relay import nodes, scripts
from tests.node.conftest import FORK_OR_ALL, Federation
from tests.support.waiting import wait_until


def url_of(federation: Federation, user: str) -> str:
    """The server's address for a user with the password ``secret``."""
    return f"unix://{user}:secret@{federation.server.url.partition('://')[2].rpartition('@')[2]}"


@pytest.fixture
def rights(federation: Federation) -> None:
    """Gives ``clinic-a`` its rule, and registers it, as an operator does."""
    redis = federation.relay.redis
    setinfo = tuple(int(part) for part in redis.info("server")["redis_version"].split(".")[:2]) >= (7, 2)
    redis.execute_command(
        "ACL", "SETUSER", "clinic-a", "reset", "on", ">secret", *node_rule("clinic-a", setinfo=setinfo)
    )
    redis.acl_log_reset()
    scripts.load(redis)
    nodes.add(federation.relay, "clinic-a")


def refusals(federation: Federation) -> set[tuple[str, str]]:
    """What the server refused, but for what is tried and may fail.

    Those are the registration, which an operator has done, and a look at the fsync policy.
    """
    refused = {(str(entry["reason"]), str(entry["object"])) for entry in federation.relay.redis.acl_log()}
    return refused - {("command", "config|get"), ("key", federation.relay.keys.nodes())}


@pytest.mark.parametrize("isolation", FORK_OR_ALL)
def test_it_answers_messages_keeps_contexts_and_ships_logs(
    federation: Federation, rights: None, isolation: str
) -> None:
    site = federation.site(isolation=isolation, redis_url=url_of(federation, "clinic-a"))
    run = federation.run(time_limit=1.0, max_deliveries=2)
    big = np.arange(50_000, dtype=np.float64)

    trained = run.push("clinic-a", "train", run.arrays(big))
    talked = run.push("clinic-a", "train.talk", run.config())
    failed = run.push("clinic-a", "train.fail", run.config())
    hung = run.push("clinic-a", "train.hang", run.config())
    died = run.push("clinic-a", "train.die", run.config(times=99))

    np.testing.assert_array_equal(run.content(trained).array_records["arrays"].to_numpy_ndarrays()[0], big + 1)
    assert run.metrics(talked)["count"] == 2
    assert run.error(failed).code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert run.error(hung).code == ErrorCode.TIME_LIMIT
    assert run.error(died).code in (ErrorCode.CLIENT_APP_CRASHED, ErrorCode.MAX_DELIVERIES)
    wait_until(lambda: run.relay.redis.xlen(run.relay.keys.log("clinic-a", run.run)) >= 3, "the log has lines")
    assert site.service.stop() == 0
    assert not site.online()
    assert refusals(federation) == set()
