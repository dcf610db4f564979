"""A process that dies, hangs or is killed is noticed, spoken for, and leaves nothing behind."""

from __future__ import annotations

import os
import signal

import pytest

from tests.relay.jobs.conftest import Start
from tests.support import gone, wait_until

SEPARATE = ["fork", "run"]


@pytest.mark.parametrize("isolation", SEPARATE)
def test_the_executing_process_dies_with_a_killed_worker(start: Start, isolation: str) -> None:
    federation = start(isolation=isolation)
    federation.put("loop")
    horse = federation.wait_executed()["pid"]
    federation.process.kill()
    federation.process.wait(10)
    wait_until(lambda: gone(horse), "the process has died with its worker", timeout=2)


@pytest.mark.parametrize("isolation", SEPARATE)
@pytest.mark.parametrize("do", ["loop", "sleep", "deaf"])
def test_what_exceeds_its_time_limit_is_killed_with_everything_it_started(
    start: Start, isolation: str, do: str
) -> None:
    federation = start(isolation=isolation)
    job = federation.wait_status(federation.put(do, "x", limit=0.7), "failed", timeout=6)
    (death,) = federation.lines("died")
    assert death == "x time-limit killed at its time limit of 0.7 s"
    assert job.meta["outcome"] == "time-limit"
    assert gone(federation.wait_executed()["pid"])
    for child in federation.lines("children"):
        wait_until(lambda child=child: gone(int(child)), f"child {child} is gone")  # type: ignore[misc]
    assert federation.wait_status(federation.put("nothing"), "finished")


@pytest.mark.parametrize("isolation", SEPARATE)
@pytest.mark.parametrize(
    ("do", "death"),
    [
        ("crash", "signal the process was killed by SIGSEGV"),
        ("exit", "exit the process exited with status 3 without an answer"),
        ("raise", "exit RuntimeError: let through"),
    ],
)
def test_a_crash_is_reported_and_the_next_message_is_served(start: Start, isolation: str, do: str, death: str) -> None:
    federation = start(isolation=isolation)
    job = federation.wait_status(federation.put(do, "x"), "failed")
    assert federation.lines("died") == [f"x {death}"]
    result = job.latest_result()
    assert result is not None
    assert result.exc_string == f"died: {death.partition(' ')[2]}"
    assert federation.wait_status(federation.put("nothing"), "finished")


def test_a_process_killed_from_outside_is_reported_with_the_signal(start: Start) -> None:
    federation = start()
    job_id = federation.put("sleep", "x")
    os.kill(federation.wait_executed()["pid"], signal.SIGKILL)
    federation.wait_status(job_id, "failed")
    assert federation.lines("died") == ["x signal the process was killed by SIGKILL"]


@pytest.mark.parametrize("isolation", ["fork", "run", "inline"])
def test_an_app_that_closes_every_file_does_not_hang_its_worker(start: Start, isolation: str) -> None:
    federation = start(isolation=isolation, supervised=isolation == "inline")
    federation.wait_status(federation.put("close", "x"), "failed")
    (death,) = federation.lines("died")
    assert death.startswith(("x exit the app closed the connection", "x signal the worker's process died"))
    assert federation.wait_status(federation.put("nothing"), "finished")


def test_what_a_job_leaves_running_is_swept_away(start: Start) -> None:
    federation = start()
    federation.wait_status(federation.put("children"), "finished")
    children = federation.lines("children")
    assert len(children) == 2
    for child in children:
        wait_until(lambda child=child: gone(int(child)), f"child {child} is gone")  # type: ignore[misc]


@pytest.mark.parametrize("isolation", SEPARATE)
def test_a_job_is_renewed_while_it_runs_and_killed_when_a_renewal_says_so(start: Start, isolation: str) -> None:
    federation = start(isolation=isolation, timing={"renew": 0.1})
    job_id = federation.put("loop", "x")
    horse = federation.wait_executed()["pid"]
    wait_until(lambda: len(federation.lines("renewed")) >= 3, "three renewals")
    federation.client.sadd("toy:stop", "x")
    job = federation.wait_status(job_id, "failed")
    assert federation.lines("died") == ["x stopped stopped, cancelled or superseded"]
    assert job.meta["outcome"] == "stopped"
    assert gone(horse)


@pytest.mark.parametrize("isolation", SEPARATE)
def test_the_time_limit_ends_when_the_app_has_finished(start: Start, isolation: str) -> None:
    federation = start(isolation=isolation)
    job_id = federation.put("late", limit=0.3, seconds=1.0)
    assert federation.wait_status(job_id, "finished")
    assert federation.lines("died") == []


def test_a_process_that_does_not_end_after_its_commit_is_ended(start: Start) -> None:
    federation = start(timing={"renew": 0.1, "linger": 0.3})
    job = federation.wait_status(federation.put("linger", limit=60), "finished")
    assert job.meta["lingered"] is True
    assert federation.lines("died") == []


@pytest.mark.parametrize("isolation", SEPARATE)
def test_signal_handlers_of_the_worker_are_not_inherited(start: Start, isolation: str) -> None:
    federation = start(isolation=isolation)
    federation.wait_status(federation.put("signals"), "finished")
    signals = federation.client.get("toy:signals")
    assert signals is not None
    assert b"SIG_DFL" in signals
    assert b"default_int_handler" in signals
