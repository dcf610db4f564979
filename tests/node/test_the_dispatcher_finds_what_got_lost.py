"""The inbox is the truth and the job a hint: whatever is lost in between, the message is run and answered once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedq.apps import RecordDict
from fedq.apps.wire import encode
from fedq.node.dispatcher import Dispatcher
from fedq.node.jobqueue import describe
from fedq.node.role import SUPERNODE, Holder, Role
from fedq.node.settings import NodeSettings
from fedq.relay import claims, nodes
from fedq.relay.connection import Relay
from fedq.relay.host import host_id
from fedq.relay.jobs import FedqJob, FedqQueue
from fedq.relay.keys import GROUP
from tests.node.conftest import Federation, HandRun, open_gate
from tests.support.servers import RealServer
from tests.support.waiting import wait_until

pytestmark = pytest.mark.every_isolation


def works(run: HandRun) -> bool:
    return run.content(run.push("clinic-a", "train", run.arrays(np.zeros(1)))) is not None


def test_messages_that_came_while_no_supernode_was_there_are_run(federation: Federation) -> None:
    nodes.add(federation.relay, "clinic-a")
    run = federation.run()
    sent = [run.push("clinic-a", "train", run.arrays(np.zeros(1))) for _ in range(3)]

    federation.site()

    assert [run.metrics(message)["count"] for message in sent] == [1, 2, 3]


@pytest.mark.slow
def test_a_job_that_vanished_is_made_again(federation: Federation) -> None:
    site = federation.site()
    run, other = federation.run(), federation.run()
    gate = other.gate()
    other.push("clinic-a", "train.wait", other.config(gate=gate))
    wait_until(other.notes, "the only slot is taken")
    os.kill(site.service.pid, 0)
    # With the worker busy and the dispatcher believing in two slots, a job waits in the queue, and is then lost.
    federation.relay.redis.sadd("rq:workers:clinic-a", "rq:worker:clinic-a_elsewhere-1-0")
    federation.relay.redis.hset("rq:worker:clinic-a_elsewhere-1-0", "queues", "clinic-a")
    message = run.push("clinic-a", "train", run.arrays(np.zeros(1)))
    wait_until(lambda: FedqQueue("clinic-a", federation.relay.redis).get_job_ids(), "the job is queued")
    federation.relay.redis.delete("rq:queue:clinic-a", f"rq:job:clinic-a_{message}_1")

    open_gate(gate)

    assert run.metrics(message)["count"] == 1


def test_a_message_that_somebody_else_holds_waits_until_it_is_given_back(federation: Federation) -> None:
    site = federation.site()
    run = federation.run()
    assert works(run)
    site.service.stop()
    message = run.push("clinic-a", "train", run.arrays(np.zeros(1)))
    entry = federation.relay.redis.xrevrange(federation.relay.keys.inbox("clinic-a"), count=1)[0][0].decode()
    claims.claim(federation.relay, "clinic-a", run.run, entry, message, "somebody", lease=60, worker="elsewhere:1")
    federation.site()
    wait_until(lambda: claims.read_claims(federation.relay, "clinic-a")[message].token == "somebody", "it is held")

    claims.release(federation.relay, "clinic-a", message, "somebody", counts=True)

    assert run.metrics(message)["count"] == 2
    assert run.wait_for(message).attempt == 2


def test_a_claim_of_a_worker_that_went_silent_elsewhere_is_freed_after_its_lease(federation: Federation) -> None:
    nodes.add(federation.relay, "clinic-a")
    run = federation.run()
    message = run.push("clinic-a", "train", run.arrays(np.zeros(1)))
    entry = federation.relay.redis.xrevrange(federation.relay.keys.inbox("clinic-a"), count=1)[0][0].decode()
    claims.claim(federation.relay, "clinic-a", run.run, entry, message, "silent", lease=0.5, worker="elsewhere:1")

    federation.site(lease=2.0)

    # Not before a lease period of the dispatcher's own service: the holder may just not have been able to renew.
    assert run.metrics(message, timeout=20)["count"] == 1
    assert run.wait_for(message).attempt == 2


def test_an_inbox_that_was_deleted_is_made_again(federation: Federation) -> None:
    federation.site()
    run = federation.run()
    assert works(run)

    federation.relay.redis.delete(federation.relay.keys.inbox("clinic-a"))

    assert works(run)
    assert federation.relay.redis.xinfo_groups(federation.relay.keys.inbox("clinic-a"))[0]["name"] == GROUP.encode()


def test_a_queue_that_was_flushed_is_filled_again(federation: Federation) -> None:
    federation.site()
    run = federation.run()
    assert works(run)

    federation.relay.redis.delete(*federation.relay.redis.scan_iter("rq:*"))

    assert works(run)


@pytest.mark.slow
def test_a_paused_server_is_waited_for(own_server: RealServer, tmp_path: Path) -> None:
    with Relay.connect(own_server.url) as relay:
        federation = Federation(own_server, relay, tmp_path)
        try:
            federation.site()
            run = federation.run()
            assert works(run)
            with own_server.paused():
                pass
            assert works(run)
        finally:
            federation.close()


def test_an_upload_that_the_full_server_refuses_is_repeated_until_there_is_room(
    own_server: RealServer, tmp_path: Path
) -> None:
    with Relay.connect(own_server.url) as relay:
        federation = Federation(own_server, relay, tmp_path)
        try:
            federation.site()
            run = federation.run()
            gate = run.gate()
            message = run.push("clinic-a", "train.wait", run.config(gate=gate, size=100_000))
            wait_until(run.notes, "the app waits")
            with own_server.configured(maxmemory=1):
                open_gate(gate)
                wait_until(lambda: len(run.notes()) == 2, "the app has finished")
                before = run.claim(message)
                wait_until(
                    lambda: (
                        before is not None
                        and (now := run.claim(message)) is not None
                        and now.lease_end > before.lease_end
                    ),
                    "the claim is renewed although the server is full",
                )
                assert run.answer(message) is None
            assert run.metrics(message)["count"] == 1
            assert run.wait_for(message).attempt == 1
        finally:
            federation.close()


def test_a_supernode_that_starts_while_the_server_is_full_still_drains_what_waits(
    own_server: RealServer, tmp_path: Path
) -> None:
    with Relay.connect(own_server.url) as relay:
        federation = Federation(own_server, relay, tmp_path)
        try:
            site = federation.site()
            run = federation.run()
            assert works(run)
            site.service.stop()
            message = run.push("clinic-a", "train", run.arrays(np.zeros(1)))
            with own_server.configured(maxmemory=1):
                federation.site()  # comes online
            assert run.metrics(message)["count"] == 2
        finally:
            federation.close()


def test_the_queue_may_live_on_a_server_of_the_nodes_own(federation: Federation, own_server: RealServer) -> None:
    federation.site(queue_url=own_server.url)
    run = federation.run()

    message = run.push("clinic-a", "train", run.arrays(np.zeros(1)))

    assert run.metrics(message)["count"] == 1
    with own_server.client() as client:
        assert FedqJob.exists(f"clinic-a_{message}_1", connection=client)
    assert not list(federation.relay.redis.scan_iter("rq:*"))


@pytest.mark.slow
def test_an_idle_node_costs_a_heartbeat_and_no_more(federation: Federation) -> None:
    federation.site(heartbeat=1.0)
    redis = federation.relay.redis
    beats = redis.info("commandstats").get("cmdstat_evalsha", {}).get("calls", 0)
    before = redis.info("stats")["total_commands_processed"]

    wait_until(
        lambda: redis.info("commandstats")["cmdstat_evalsha"]["calls"] >= beats + 6, "three heartbeats have passed"
    )

    # Ours and the worker's heartbeats and blocking reads, and the questions of this test.
    asked = redis.info("commandstats")["cmdstat_info"]["calls"]
    assert redis.info("stats")["total_commands_processed"] - before < 60 + asked


@pytest.fixture
def role(relay: Relay) -> Iterator[Role]:
    made = Role(relay, "clinic-a", Holder(SUPERNODE, "one", host_id(), 1), lease=30)
    yield made
    made.drop()
    nodes.forget(relay, "clinic-a")


def test_the_role_of_a_dead_process_here_is_free_and_that_of_one_elsewhere_is_not(relay: Relay, role: Role) -> None:
    gone = os.fork()
    if gone == 0:
        os._exit(0)
    os.waitpid(gone, 0)
    dead = Role(relay, "clinic-a", Holder(SUPERNODE, "dead", host_id(), gone), lease=30)
    elsewhere = Role(relay, "clinic-a", Holder(SUPERNODE, "elsewhere", "another-host", gone), lease=30)

    assert dead.take()
    assert role.take()
    role.drop()
    assert elsewhere.take()
    assert not role.take()
    assert role.other == elsewhere.holder
    assert 25 < role.left <= 30
    elsewhere.drop()


def test_a_dispatcher_that_loses_its_role_stands_by_and_comes_back(relay: Relay, role: Role) -> None:
    import threading

    settings = NodeSettings("clinic-a", heartbeat=0.2)
    with relay.again() as own:
        role = Role(own, "clinic-a", role.holder, lease=0.7)
        dispatcher = Dispatcher(settings, own, own, role, nodes.NodeInfo())
        thread = threading.Thread(target=dispatcher.run)
        thread.start()
        try:
            wait_until(lambda: nodes.online(relay, ["clinic-a"])["clinic-a"], "the node is online")
            other = Role(relay, "clinic-a", Holder(SUPERNODE, "other", "another-host", 1), lease=0.7)
            relay.redis.delete(relay.keys.node_dispatcher("clinic-a"))
            wait_until(other.take, "the role is taken away")
            wait_until(lambda: not role.held, "it stands by")
            other.drop()
            wait_until(lambda: role.held, "it has the role again")
        finally:
            dispatcher.stop()
            thread.join(10)
    assert not nodes.online(relay, ["clinic-a"])["clinic-a"]


@pytest.mark.parametrize("end", ["failed", pytest.param("taken", marks=pytest.mark.slow)])
def test_a_job_that_is_lost_before_its_claim_is_made_again_as_soon_as_it_would_have_arrived(
    role: Role, federation: Federation, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    import threading

    monkeypatch.setattr("fedq.node.dispatcher.RECONCILE", 600.0)
    relay = federation.relay
    queue = FedqQueue("clinic-a", relay.redis)
    with relay.again() as own:
        dispatcher = Dispatcher(
            NodeSettings("clinic-a"), own, own, Role(own, "clinic-a", role.holder), nodes.NodeInfo()
        )
        thread = threading.Thread(target=dispatcher.run)
        thread.start()
        try:
            wait_until(lambda: nodes.online(relay, ["clinic-a"])["clinic-a"], "the node is online")
            run = federation.run()
            message = run.push("clinic-a", "train", run.arrays(np.zeros(1)))
            first = wait_until(queue.get_job_ids, "the job is queued")
            assert relay.redis.lpop(queue.key)
            if end == "failed":
                relay.redis.hset(FedqJob.key_for(first[0]), "status", "failed")
            second = wait_until(queue.get_job_ids, "another job is queued")
        finally:
            dispatcher.stop()
            thread.join(10)
    assert [*first, *second] == [f"clinic-a_{message}_1", f"clinic-a_{message}_2"]
    relay.redis.delete(*relay.redis.keys("rq:*"))


def test_a_job_is_described_in_words() -> None:
    assert describe(7, "train", "3", "clinic-a", 1) == "run 7 · train · round 3 · clinic-a · attempt 1"
    assert describe(7, "query.size", "warm-up", "b", 2) == "run 7 · query.size · warm-up · b · attempt 2"
    assert describe(7, "train", "", "b", 1) == "run 7 · train · b · attempt 1"


def test_a_job_that_is_none_of_ours_is_refused_and_the_next_one_runs(federation: Federation) -> None:
    site = federation.site()
    from fedq.relay.jobs import enqueue

    enqueue("clinic-a", federation.relay.redis, "clinic-a_foreign_1", {"node": "clinic-b"}, description="not ours")
    run = federation.run()

    assert works(run)
    job = site.ended_job("foreign")
    assert job.get_status() == "failed"
    assert "refused" in (job.latest_result().exc_string or "")  # type: ignore[union-attr]


def test_what_is_answered_while_the_dispatcher_looks_for_its_job_is_not_run_again(
    role: Role, federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its look at the inbox and its look at claims and jobs the message is committed, and its job ends."""
    settings = NodeSettings("clinic-a")
    relay = federation.relay
    queue = FedqQueue("clinic-a", relay.redis)
    with relay.again() as own:
        dispatcher = Dispatcher(settings, own, own, Role(own, "clinic-a", role.holder), nodes.NodeInfo())
        assert dispatcher.role.take()
        dispatcher._sync()
        run = federation.run()
        first = run.push("clinic-a", "train", run.arrays(np.zeros(1)))
        dispatcher._backlog.read_anew()
        dispatcher._dispatch()
        (job_id,) = queue.get_job_ids()
        look = dispatcher.jobs.without_job

        def answered_meanwhile(dispatched: Any) -> Any:
            ((entry, _),) = relay.redis.xrange(relay.keys.inbox("clinic-a"))
            held = claims.claim(relay, "clinic-a", run.run, entry.decode(), first, "token")
            assert held.outcome is claims.Claim.OK
            body = encode(RecordDict())
            claims.commit(relay, "clinic-a", run.run, entry.decode(), first, "token", ok=True, body=body.data)
            relay.redis.delete(f"rq:job:{job_id}", queue.key)
            return look(dispatched)

        monkeypatch.setattr(dispatcher.jobs, "without_job", answered_meanwhile)
        dispatcher._verify()
        dispatcher._dispatch()
        assert queue.get_job_ids() == []

        # The run has its turn at once, not when somebody notices that there was nothing to do.
        monkeypatch.setattr(dispatcher.jobs, "without_job", look)
        second = run.push("clinic-a", "train", run.arrays(np.zeros(1)))
        dispatcher._backlog.read_anew()
        dispatcher._dispatch()
        assert queue.get_job_ids() == [f"clinic-a_{second}_1"]
        queue.empty()
        dispatcher._leave()
