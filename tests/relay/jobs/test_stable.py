"""The process from which horses are forked may die or stand still like any other, and nothing is lost by it."""

from __future__ import annotations

import faulthandler
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from fedq.relay.jobs.frames import Channel
from fedq.relay.jobs.processes import poll
from fedq.relay.jobs.stable import Stable
from tests.relay.jobs.conftest import Start
from tests.support import gone, wait_until


def test_horses_are_forked_from_one_process_which_is_not_the_worker(start: Start) -> None:
    federation = start()
    for _ in range(3):
        federation.wait_status(federation.put("nothing"), "finished")
    executed = federation.executed()
    assert len({line["pid"] for line in executed}) == 3
    (stable,) = {line["parent"] for line in executed}
    assert psutil.Process(stable).ppid() == federation.process.pid


def test_what_horses_need_is_loaded_where_they_are_forked_once_a_second_one_is_wanted(start: Start) -> None:
    federation = start()
    for _ in range(2):
        federation.wait_status(federation.put("nothing"), "finished")

    def loaded() -> list[int]:
        federation.wait_status(federation.put("nothing"), "finished")
        found: list[int] = federation.executed()[-1]["preloaded"]
        return found

    wait_until(lambda: len(loaded()) == 3, "a horse finds all that is to be loaded")
    first, second, *later = federation.executed()
    assert first["preloaded"] == second["preloaded"] == []
    assert loaded() == later[-1]["preloaded"] == 3 * [first["parent"]]


def test_while_it_loads_a_stable_forks_hears_and_tells(tmp_path: Path) -> None:
    ready = tmp_path / "loading"

    def load_for_ever() -> Iterator[None]:
        ready.touch()
        while True:
            yield

    def work(channel: Channel) -> object:
        value = channel.receive_one()
        if value == "crash":
            faulthandler.disable()
            os.kill(os.getpid(), signal.SIGSEGV)
        return channel.send("done") if value == "work" else signal.pause()

    stable = Stable(lambda: None, load_for_ever, work)
    statuses = []
    try:
        for number, what in enumerate(["work", "work", "work", "crash", "wait"]):
            horse, channel = stable.start()
            channel.send(what)
            if what == "wait":
                horse.kill()
            assert horse.wait(10.0)
            statuses.append(horse.status)
            channel.close()
            if number == 1:
                wait_until(ready.exists, "the stable loads, since a second horse was wanted")
            else:
                assert ready.exists() == (number > 1)
        assert statuses == [0, 0, 0, signal.SIGSEGV, signal.SIGKILL]
        assert stable.alive
    finally:
        stable.close()


def test_between_jobs_only_the_stable_is_there_and_it_ends_with_its_worker(start: Start) -> None:
    federation = start()
    federation.wait_status(federation.put("nothing"), "finished")
    (stable,) = psutil.Process(federation.process.pid).children()
    wait_until(lambda: stable.children() == [], "the horse has ended")
    assert federation.stop() == 0
    assert gone(stable.pid)


def test_a_worker_without_a_job_lets_go_of_its_stable_after_a_while_and_has_another_for_the_next(start: Start) -> None:
    federation = start(timing={"keep": 0.5})
    federation.wait_status(federation.put("nothing"), "finished")
    first = federation.executed()[0]["parent"]
    wait_until(lambda: gone(first), "the stable has ended")
    assert psutil.Process(federation.process.pid).children() == []
    federation.wait_status(federation.put("nothing"), "finished")
    assert federation.executed()[1]["parent"] != first


def test_a_stable_that_dies_takes_its_horse_along_and_another_takes_its_place(start: Start) -> None:
    federation = start()
    job = federation.put("loop", "x")
    line = federation.wait_executed()
    os.kill(line["parent"], signal.SIGKILL)
    federation.wait_status(job, "failed")
    assert federation.lines("died") == ["x signal the process was killed by SIGKILL"]
    assert gone(line["pid"])
    assert federation.wait_status(federation.put("nothing"), "finished")
    assert federation.executed()[-1]["parent"] != line["parent"]


def test_a_stable_that_dies_between_two_jobs_costs_neither(start: Start) -> None:
    federation = start()
    federation.wait_status(federation.put("nothing"), "finished")
    stable = federation.executed()[0]["parent"]
    os.kill(stable, signal.SIGKILL)
    wait_until(lambda: gone(stable), "the worker has let go of it")
    assert federation.wait_status(federation.put("nothing"), "finished")
    assert federation.lines("died") == []


def test_the_time_limit_is_kept_while_the_stable_stands_still(start: Start) -> None:
    federation = start()
    job = federation.put("deaf", "x", limit=0.5)
    line = federation.wait_executed()
    os.kill(line["parent"], signal.SIGSTOP)
    federation.wait_status(job, "failed")
    assert federation.lines("died") == ["x time-limit killed at its time limit of 0.5 s"]
    for pid in [line["pid"], line["parent"], *map(int, federation.lines("children"))]:
        wait_until(lambda pid=pid: gone(pid), f"process {pid} is gone")  # type: ignore[misc]
    assert federation.wait_status(federation.put("nothing"), "finished")


@pytest.mark.slow
def test_the_horse_dies_with_a_worker_that_is_killed_while_the_stable_stands_still(start: Start) -> None:
    federation = start()
    federation.put("loop")
    line = federation.wait_executed()
    os.kill(line["parent"], signal.SIGSTOP)
    federation.process.kill()
    federation.process.wait(10)
    wait_until(lambda: gone(line["pid"]) and gone(line["parent"]), "both have died with the worker", timeout=2)


def test_a_horse_that_cannot_be_forked_is_an_error_with_words() -> None:
    stable = Stable(_let_no_more_be_forked, lambda: iter(()), lambda channel: True)
    try:
        horse, channel = stable.start()
        assert poll([stable.fileno()], 10.0)
        with pytest.raises(OSError, match="a process for the app could not be forked: "):
            horse.ended()
        channel.close()
        assert horse.ended()
        assert stable.alive
    finally:
        stable.close()


def test_horses_are_forked_also_where_what_they_need_cannot_be_loaded() -> None:
    def fail() -> Iterator[None]:
        yield
        raise ImportError("broken")

    stable = Stable(lambda: None, fail, lambda channel: channel.send("here"))
    try:
        for _ in range(4):
            horse, channel = stable.start()
            assert channel.receive_one() == "here"
            assert horse.wait(10.0)
            channel.close()
    finally:
        stable.close()


def _let_no_more_be_forked() -> None:
    def refuse() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    os.fork = refuse  # only here: this runs in the stable's process
