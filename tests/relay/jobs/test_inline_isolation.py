"""``inline`` isolation: the worker itself executes, and is replaced when it has to be killed."""

from __future__ import annotations

import os
import signal

import pytest

from tests.relay.jobs.conftest import Start
from tests.support import descendants, gone, wait_until


def test_messages_are_executed_in_the_worker_itself(start: Start) -> None:
    federation = start(isolation="inline")
    for _ in range(3):
        federation.wait_status(federation.put("nothing"), "finished")
    assert {line["pid"] for line in federation.executed()} == {federation.process.pid}


@pytest.mark.parametrize("do", ["loop", "sleep", "deaf"])
def test_at_its_time_limit_the_worker_is_killed_and_replaced(start: Start, do: str) -> None:
    federation = start(isolation="inline", supervised=True)
    job = federation.wait_status(federation.put(do, "x", limit=0.7), "failed", timeout=6)
    assert federation.lines("died") == ["x time-limit killed at its time limit of 0.7 s"]
    assert job.meta["outcome"] == "time-limit"
    first = federation.wait_executed()["pid"]
    wait_until(lambda: gone(first), "the worker is gone")
    federation.wait_status(federation.put("nothing"), "finished")
    assert federation.executed()[1]["pid"] != first
    for child in federation.lines("children"):
        wait_until(lambda child=child: gone(int(child)), f"child {child} is gone")  # type: ignore[misc]


def test_a_renewal_that_says_stop_ends_the_worker(start: Start) -> None:
    federation = start(isolation="inline", supervised=True, timing={"renew": 0.1})
    job_id = federation.put("loop", "x")
    first = federation.wait_executed()["pid"]
    wait_until(lambda: len(federation.lines("renewed")) >= 3, "three renewals")
    federation.client.sadd("toy:stop", "x")
    federation.wait_status(job_id, "failed")
    assert federation.lines("died") == ["x stopped stopped, cancelled or superseded"]
    wait_until(lambda: gone(first), "the worker is gone")
    assert federation.wait_status(federation.put("nothing"), "finished")


@pytest.mark.parametrize("do", ["crash", "exit"])
def test_the_side_process_speaks_for_a_worker_that_died(start: Start, do: str) -> None:
    federation = start(isolation="inline", supervised=True)
    job_id = federation.put(do, "x")
    federation.wait_status(job_id, "failed")
    assert federation.lines("died") == ["x signal the worker's process died while it executed the app"]
    assert federation.wait_status(federation.put("nothing"), "finished")


def test_what_an_app_lets_through_does_not_end_the_worker(start: Start) -> None:
    federation = start(isolation="inline")
    federation.wait_status(federation.put("raise", "x"), "failed")
    assert federation.lines("died") == ["x exit RuntimeError: let through"]
    federation.wait_status(federation.put("nothing"), "finished")
    assert len({line["pid"] for line in federation.executed()}) == 1


def test_a_side_process_that_died_is_replaced(start: Start) -> None:
    federation = start(isolation="inline")
    federation.wait_status(federation.put("nothing"), "finished")
    (side,) = descendants(federation.process.pid)
    os.kill(side.pid, signal.SIGKILL)
    wait_until(
        lambda: [p.pid for p in descendants(federation.process.pid)] not in ([], [side.pid]), "a new side process"
    )
    assert federation.wait_status(federation.put("nothing"), "finished")


def test_the_time_limit_ends_when_the_app_has_finished(start: Start) -> None:
    federation = start(isolation="inline")
    assert federation.wait_status(federation.put("late", limit=0.3, seconds=1.0), "finished")
    assert federation.lines("died") == []
