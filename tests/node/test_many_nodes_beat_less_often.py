"""The server has so much time for heartbeats: where there are thousands of nodes, each of them beats less often."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from fedq.node.dispatcher import Dispatcher
from fedq.node.pace import PER_SECOND, Pace, paced
from fedq.node.role import SUPERNODE, Holder, Role
from fedq.node.settings import NodeSettings
from fedq.relay import nodes
from fedq.relay.connection import Relay
from fedq.relay.host import host_id
from tests.support import wait_until

HEARTBEAT = 0.2


@pytest.mark.parametrize(("count", "seconds"), [(1, 5.0), (4000, 5.0), (10_000, 12.5), (1_000_000, 15.0)])
def test_up_to_some_thousand_nodes_beat_as_their_settings_say_and_more_share_the_time(
    count: int, seconds: float
) -> None:
    assert paced(5.0, count) == seconds


@pytest.mark.parametrize("count", [1, 4000, 10_000, 1_000_000])
def test_no_node_goes_offline_when_it_learns_how_many_there_are(count: int) -> None:
    assert Pace(5.0).ttl > paced(5.0, count)


@pytest.fixture
def crowd(relay: Relay) -> Iterator[list[str]]:
    names = [f"other-{number}" for number in range(int(PER_SECOND * HEARTBEAT * 2))]
    relay.redis.sadd(relay.keys.nodes(), *names)
    yield names
    relay.redis.srem(relay.keys.nodes(), *names)
    nodes.forget(relay, "clinic-a")


def test_a_node_among_many_says_that_it_will_be_heard_of_later(relay: Relay, crowd: list[str]) -> None:
    alone = Pace(HEARTBEAT).ttl
    keys = (relay.keys.node_alive("clinic-a"), relay.keys.node_dispatcher("clinic-a"))
    with relay.again() as own:
        role = Role(own, "clinic-a", Holder(SUPERNODE, "one", host_id(), 1), lease=alone)
        dispatcher = Dispatcher(NodeSettings("clinic-a", heartbeat=HEARTBEAT), own, own, role, nodes.NodeInfo())
        thread = threading.Thread(target=dispatcher.run)
        thread.start()
        try:
            wait_until(
                lambda: all(relay.redis.pttl(key) > alone * 1000 for key in keys),
                "its heartbeat and its lease last longer than those of a node alone",
            )
        finally:
            dispatcher.stop()
            thread.join(10)
    assert not nodes.online(relay, ["clinic-a"])["clinic-a"]
