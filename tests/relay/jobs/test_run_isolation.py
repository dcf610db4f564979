"""``run`` isolation: one process for each run and worker, kept for its later messages."""

from __future__ import annotations

import os
import signal

from tests.relay.jobs.conftest import Federation, Start
from tests.support import gone, wait_until


def served(federation: Federation, group: str, do: str = "nothing", status: str = "finished") -> int:
    """Serve one message of a run; the process that did."""
    count = len(federation.executed())
    federation.wait_status(federation.put(do, group=group), status)
    pid: int = federation.executed()[count]["pid"]
    return pid


def test_messages_of_one_run_share_a_process_and_runs_do_not(start: Start) -> None:
    federation = start(isolation="run")
    one = [served(federation, "1") for _ in range(3)]
    two = served(federation, "2")
    assert len(set(one)) == 1
    assert two not in one
    assert served(federation, "1") == one[0]
    assert served(federation, "2") == two
    assert federation.process.pid not in (one[0], two)


def test_after_a_crash_the_run_gets_a_fresh_process(start: Start) -> None:
    federation = start(isolation="run")
    first = served(federation, "1")
    assert served(federation, "1", "crash", "failed") == first
    second = served(federation, "1")
    assert second != first
    assert served(federation, "1") == second


def test_a_kept_process_that_died_while_idle_is_replaced(start: Start) -> None:
    federation = start(isolation="run")
    first = served(federation, "1")
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: gone(first), "the kept process is gone")
    assert served(federation, "1") != first
    assert federation.lines("died") == []


def test_a_kept_process_ends_with_its_run(start: Start) -> None:
    federation = start(isolation="run", timing={"alive": 0.1})
    one, two = served(federation, "1"), served(federation, "2")
    federation.client.sadd("toy:over", "1")
    wait_until(lambda: gone(one), "the process of the run that is over has ended")
    assert not gone(two)
    assert served(federation, "2") == two


def test_only_so_many_idle_processes_are_kept(start: Start) -> None:
    federation = start(isolation="run")
    pids = [served(federation, str(number)) for number in range(6)]
    wait_until(lambda: gone(pids[0]) and gone(pids[1]), "the two that were idle for longest have ended")
    assert not any(gone(pid) for pid in pids[2:])


def test_kept_processes_end_with_the_worker(start: Start) -> None:
    federation = start(isolation="run")
    pids = [served(federation, str(number)) for number in range(2)]
    assert federation.stop() == 0
    assert all(gone(pid) for pid in pids)


def test_kept_processes_die_with_a_killed_worker(start: Start) -> None:
    federation = start(isolation="run")
    pid = served(federation, "1")
    federation.process.kill()
    wait_until(lambda: gone(pid), "the kept process has died with its worker")
