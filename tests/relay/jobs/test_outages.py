"""A server that goes away is waited for: no worker ends, none spins."""

from __future__ import annotations

import socket
from typing import Any

import psutil
import pytest
import redis as redis_py

from fedq.relay.connection import Relay
from fedq.relay.jobs.worker import _own_client
from tests.relay.jobs.conftest import Start
from tests.support import RealServer, wait_until

ALL = ["fork", "run", "inline"]
AWAY = (redis_py.ConnectionError, redis_py.TimeoutError)


@pytest.mark.parametrize("isolation", ALL)
def test_an_idle_worker_survives_a_crash_of_the_server(start: Start, own_server: RealServer, isolation: str) -> None:
    federation = start(own_server, isolation=isolation)
    federation.wait_status(federation.put("nothing"), "finished")
    own_server.crash()
    federation.wait_status(federation.put("nothing"), "finished")
    assert federation.process.poll() is None
    assert len(federation.client.keys("rq:worker:toy_*")) >= 1


@pytest.mark.parametrize("isolation", ALL)
def test_a_crash_during_a_job_ends_neither_worker_nor_job(start: Start, own_server: RealServer, isolation: str) -> None:
    federation = start(own_server, isolation=isolation, timing={"renew": 0.1})
    job_id = federation.put("late", "x", seconds=2.0, limit=0.5)
    federation.wait_executed()
    own_server.crash()
    wait_until(lambda: federation.lines("done") == ["x"], "the job is done", ignore=AWAY)
    federation.wait_status(job_id, "finished")
    federation.wait_status(federation.put("nothing"), "finished")
    assert federation.process.poll() is None


@pytest.mark.parametrize("isolation", ALL)
def test_a_worker_that_starts_before_its_server_waits_for_it(
    start: Start, own_server: RealServer, isolation: str, capfd: pytest.CaptureFixture[str]
) -> None:
    own_server.kill()
    federation = start(own_server, isolation=isolation)
    wait_until(lambda: "waits for the server" in capfd.readouterr().err, "the worker waits")
    own_server.start()
    federation.wait_status(federation.put("nothing"), "finished")


@pytest.mark.skipif(not hasattr(socket, "TCP_KEEPIDLE"), reason="the system has another name for it")
def test_a_worker_that_waits_for_a_job_hears_soon_that_the_machine_of_the_server_is_lost() -> None:
    with RealServer(listen="loopback") as server, Relay.connect(server.url) as relay:
        client = _own_client(relay.redis)
        connection: Any = client.connection_pool.get_connection()
        idle, interval, count = (
            connection._sock.getsockopt(socket.IPPROTO_TCP, option)
            for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        )
        assert idle <= 5, "a machine that is there again answers the first question that it knows of no connection"
        assert idle + interval * count <= 15
        client.connection_pool.release(connection)
        client.close()


def test_waiting_for_the_server_costs_next_to_nothing(start: Start, own_server: RealServer) -> None:
    federation = start(own_server, isolation="fork")
    federation.wait_status(federation.put("nothing"), "finished")
    own_server.kill()
    process = psutil.Process(federation.process.pid)
    before = process.cpu_times()
    with pytest.raises(psutil.TimeoutExpired):
        process.wait(2.5)
    after = process.cpu_times()
    assert (after.user + after.system) - (before.user + before.system) < 0.3
    own_server.start()
    federation.wait_status(federation.put("nothing"), "finished")


def test_the_time_limit_holds_while_the_server_does_not_answer(start: Start, own_server: RealServer) -> None:
    federation = start(own_server, timing={"renew": 0.1})
    federation.put("loop", "x", limit=1.0)
    horse = psutil.Process(federation.wait_executed()["pid"])
    federation.wait_status("toy_x_1", "started")
    with own_server.paused():
        wait_until(
            lambda: not horse.is_running() or horse.status() == psutil.STATUS_ZOMBIE, "killed in time", timeout=4
        )
    federation.wait_status("toy_x_1", "failed", timeout=30)
    assert federation.lines("died") == ["x time-limit killed at its time limit of 1 s"]


def test_a_worker_stops_while_the_server_is_away(start: Start, own_server: RealServer) -> None:
    federation = start(own_server)
    federation.wait_status(federation.put("nothing"), "finished")
    own_server.kill()
    assert federation.stop() == 0
    own_server.start()


def test_what_is_queued_is_worked_off_while_the_memory_is_full(start: Start, own_server: RealServer) -> None:
    federation = start(own_server)
    federation.wait_status(federation.put("nothing"), "finished")
    federation.wait_status(federation.put("wait", "w"), "started")
    for name in ("x", "y"):
        federation.put("nothing", name)
    federation.client.set("toy:go:w", 1)
    with own_server.configured(maxmemory=1):
        # The toy writes down what it does with commands that a full server refuses, so it dies of that; it was begun.
        wait_until(lambda: federation.client.llen("rq:queue:toy") == 0, "the queue is worked off", timeout=15)
        assert federation.process.poll() is None
    federation.wait_status(federation.put("nothing"), "finished")
