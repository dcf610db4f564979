"""Starting, stopping, killing and restarting a SuperNode loses nothing and answers nothing twice."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import numpy as np
import psutil
import pytest

from fedq.relay import nodes
from fedq.relay.connection import Relay
from tests.node.conftest import FORK_OR_ALL, SERVE, Federation, open_gate
from tests.support.servers import RealServer
from tests.support.services import Service
from tests.support.waiting import wait_until

pytestmark = pytest.mark.every_isolation


@pytest.fixture
def crashing(own_server: RealServer, tmp_path: Path) -> Iterator[Federation]:
    """A federation on a server of its own, to kill."""
    with Relay.connect(own_server.url) as relay:
        made = Federation(own_server, relay, tmp_path)
        try:
            yield made
        finally:
            made.close()


def test_sigterm_ends_it_well_and_shows_the_node_offline_at_once(federation: Federation) -> None:
    site = federation.site()

    assert site.service.stop() == 0

    assert not site.online()
    assert nodes.node_names(federation.relay) == ["clinic-a"]
    assert federation.relay.redis.exists(federation.relay.keys.node_dispatcher("clinic-a")) == 0
    assert federation.relay.redis.scard("rq:workers:clinic-a") == 0
    assert federation.site().online()


def test_its_log_can_be_json_lines(federation: Federation) -> None:
    site = federation.site(log_format="json")
    run = federation.run()
    run.content(run.push("clinic-a", "train.talk", run.config()))

    site.service.stop()

    lines = [json.loads(line) for line in site.service.output().splitlines()]
    assert all({"time", "level", "logger", "text"} <= set(line) for line in lines)
    assert any("trusts ANY app" in line["text"] and line["level"] == "WARNING" for line in lines)
    assert lines[-1]["text"] == "node clinic-a has ended"


def test_a_running_app_may_finish_within_the_grace_time(federation: Federation) -> None:
    site = federation.site(grace=20.0)
    run = federation.run()
    gate = run.gate()
    message = run.push("clinic-a", "train.wait", run.config(gate=gate))
    wait_until(run.notes, "the app waits")

    os.kill(site.service.pid, signal.SIGTERM)
    wait_until(lambda: "stopping" in site.service.output(), "the SuperNode stops")
    assert site.online()
    open_gate(gate)

    assert site.service.stop() == 0
    assert run.metrics(message)["count"] == 1
    assert run.wait_for(message).attempt == 1
    assert not site.online()


@pytest.mark.parametrize("isolation", FORK_OR_ALL)
def test_what_is_cut_short_by_a_shutdown_is_tried_again_and_does_not_count(
    federation: Federation, isolation: str
) -> None:
    site = federation.site(grace=0.2, isolation=isolation)
    run = federation.run(max_deliveries=1)
    gate = run.gate()
    message = run.push("clinic-a", "train.wait", run.config(gate=gate))
    wait_until(run.notes, "the app waits")

    assert site.service.stop() == 0
    assert run.answer(message) is None
    federation.site(isolation=isolation)
    wait_until(lambda: len(run.notes()) == 2, "the app waits again")
    open_gate(gate)

    assert run.metrics(message)["count"] == 1
    assert run.wait_for(message).attempt == 1


@pytest.mark.parametrize("isolation", FORK_OR_ALL)
def test_a_killed_supernode_leaves_no_process_and_its_successor_goes_on(federation: Federation, isolation: str) -> None:
    site = federation.site(isolation=isolation)
    run = federation.run()
    first = run.push("clinic-a", "train", run.arrays(np.zeros(2)))
    assert run.metrics(first)["count"] == 1
    gate = run.gate()
    message = run.push("clinic-a", "train.wait", run.config(gate=gate))
    wait_until(run.notes, "the app waits")
    family = psutil.Process(site.service.pid).children(recursive=True)
    assert len(family) >= 2

    site.service.kill()

    # Its own lease still stands, but its holder is known to be dead: the name is free at once.
    again = federation.site(isolation=isolation, wait=False)
    wait_until(lambda: not any(p.is_running() for p in family), "all its processes are gone")
    wait_until(lambda: len(run.notes()) == 2, "the app waits again", timeout=20.0)
    open_gate(gate)
    assert run.metrics(message)["count"] == 2
    assert run.wait_for(message).attempt == 2
    assert again.service.running


@pytest.mark.parametrize("victim", ["dispatcher", "worker-0"])
def test_a_killed_part_is_restarted_and_nothing_is_lost(federation: Federation, victim: str) -> None:
    site = federation.site()
    run = federation.run()
    gate = run.gate()
    message = run.push("clinic-a", "train.wait", run.config(gate=gate))
    wait_until(run.notes, "the app waits")

    os.kill(site.pid_of(victim), signal.SIGKILL)

    expected = 1 if victim == "dispatcher" else 2
    wait_until(lambda: len(run.notes()) == expected, "the app waits, again if its worker died")
    later = run.push("clinic-a", "train", run.arrays(np.zeros(1)))
    open_gate(gate)
    assert run.metrics(message)["count"] == 1
    assert run.wait_for(message).attempt == expected
    assert run.metrics(later)["count"] == 2


def test_a_second_supernode_of_the_name_is_refused(federation: Federation) -> None:
    site = federation.site()

    second = federation.site(wait=False)

    wait_until(lambda: not second.service.running, "the second one has ended")
    assert second.service.output().count("error:") == 1
    assert f"a SuperNode named 'clinic-a' is already running on {os.uname().nodename}" in second.service.output()
    assert f"pid {site.service.pid}" in second.service.output()
    assert site.online()
    run = federation.run()
    assert run.metrics(run.push("clinic-a", "train", run.arrays(np.zeros(1))))["count"] == 1


def test_a_worker_takes_over_when_the_supernode_is_gone(federation: Federation) -> None:
    site = federation.site(heartbeat=0.5)
    helper = federation.site(what="worker", heartbeat=0.5, wait=False)
    wait_until(lambda: "is ready" in helper.service.output(), "the worker is ready")

    site.service.stop()

    helper.wait_online()
    run = federation.run()
    assert run.metrics(run.push("clinic-a", "train", run.arrays(np.zeros(1))))["count"] == 1
    # The SuperNode comes back behind its worker, which is no reason to refuse it.
    back = federation.site(heartbeat=0.5, wait=False)
    wait_until(lambda: "standing by" in back.service.output(), "the SuperNode stands by")
    helper.service.stop()
    back.wait_online()
    assert run.metrics(run.push("clinic-a", "train", run.arrays(np.zeros(1))))["count"] == 2


@pytest.mark.slow
def test_a_worker_takes_over_from_a_dispatcher_that_stands_still_when_its_lease_ends(federation: Federation) -> None:
    """Not sooner: from another machine nobody can tell one that stands still from one that is slow to answer."""
    site = federation.site(heartbeat=0.5)
    helper = federation.site(what="worker", heartbeat=0.5, wait=False)
    wait_until(lambda: "is ready" in helper.service.output(), "the worker is ready")
    dispatcher = site.pid_of("dispatcher")
    run = federation.run()

    os.kill(dispatcher, signal.SIGSTOP)
    try:
        message = run.push("clinic-a", "train", run.arrays(np.zeros(1)))
        assert run.metrics(message)["count"] == 1
    finally:
        os.kill(dispatcher, signal.SIGCONT)

    # Whoever dispatches now, or were it both: each message is run once.
    for count in (2, 3, 4):
        assert run.metrics(run.push("clinic-a", "train", run.arrays(np.zeros(1))))["count"] == count
    assert site.service.running
    assert helper.service.running


@pytest.mark.parametrize("isolation", FORK_OR_ALL)
def test_a_server_that_crashes_is_waited_for(crashing: Federation, isolation: str) -> None:
    site = crashing.site(isolation=isolation)
    run = crashing.run()
    gate = run.gate()
    message = run.push("clinic-a", "train.wait", run.config(gate=gate))
    wait_until(run.notes, "the app waits")
    crashing.relay.redis.bgrewriteaof()

    crashing.server.kill()
    open_gate(gate)
    wait_until(lambda: len(run.notes()) == 2, "the app has finished while the server is away")
    crashing.server.start()

    assert run.metrics(message)["count"] == 1
    assert run.wait_for(message).attempt == 1
    assert len(run.notes()) == 2
    later = run.push("clinic-a", "train", run.arrays(np.zeros(1)))
    assert run.metrics(later)["count"] == 2
    assert site.service.running


def test_it_waits_for_a_server_that_is_not_there_yet(tmp_path: Path, server_kind: str) -> None:
    with RealServer(tmp_path / "server", kind=server_kind or None) as server:  # type: ignore[arg-type]
        server.stop()
        with Relay.connect(server.url) as relay:
            federation = Federation(server, relay, tmp_path)
            try:
                site = federation.site(wait=False)
                wait_until(lambda: "waiting for it" in site.service.output(), "it says that it waits")
                server.start()
                site.wait_online()
            finally:
                federation.close()


def test_a_wrong_password_ends_it_with_one_clear_line(tmp_path: Path, own_server: RealServer) -> None:
    with own_server.client() as client:
        client.acl_setuser("clinic-a", enabled=True, passwords=["+right"], categories=["+@all"], keys=["*"])
    url = f"unix://clinic-a:{quote('wrong')}@{own_server.url.partition('://')[2].rpartition('@')[2]}"
    given = json.dumps({"name": "clinic-a", "redis_url": url, "cache_dir": str(tmp_path)})
    service = Service("supernode", [sys.executable, str(SERVE), "supernode", given], log=tmp_path / "log")

    service.start()

    wait_until(lambda: not service.running, "it has ended")
    assert service.stop() == 1
    assert "wants another user or password" in service.output()
    assert "Traceback" not in service.output()
    assert "wrong" not in service.output()
