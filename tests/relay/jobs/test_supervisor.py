"""The supervisor: restarts what dies, passes signals on, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedq.relay.jobs import ChildSpec, Supervisor
from tests.relay.jobs import troupe as troupe_module
from tests.relay.jobs.conftest import Forked
from tests.support import descendants, gone, wait_until


class Troupe:
    """A running supervisor and what its children wrote down."""

    def __init__(self, log: Path, *children: dict[str, Any], **settings: Any) -> None:
        self.log = log
        log.touch()
        self.process = Forked(lambda: troupe_module.run({"children": children, "log": str(log), **settings}))

    def lines(self, name: str, what: str) -> list[dict[str, Any]]:
        """The lines of that child and kind."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [line for line in lines if line["name"] == name and line["what"] == what]

    def wait(self, name: str, what: str, count: int = 1) -> dict[str, Any]:
        """Wait for the ``count``-th line of that kind."""
        wait_until(lambda: len(self.lines(name, what)) >= count, f"{name} has written {what} {count} times")
        return self.lines(name, what)[count - 1]


@pytest.fixture
def troupe(tmp_path: Path) -> Iterator[Callable[..., Troupe]]:
    """Starts supervisors; ended after the test."""
    started: list[Troupe] = []

    def begin(*children: dict[str, Any], **settings: Any) -> Troupe:
        started.append(Troupe(tmp_path / f"log-{len(started)}", *children, **settings))
        return started[-1]

    yield begin
    for one in started:
        if one.process.poll() is None:
            one.process.terminate()
            one.process.wait(15)


Begin = Callable[..., Troupe]


def test_a_killed_child_is_started_again_at_once(troupe: Begin) -> None:
    one = troupe({"name": "a", "do": "wait"})
    first = one.wait("a", "begun")["pid"]
    os.kill(first, signal.SIGKILL)
    second = one.wait("a", "begun", 2)["pid"]
    assert second != first
    assert one.wait("supervisor", "died")["status"] == "killed by SIGKILL"


def test_a_child_that_keeps_failing_is_started_less_and_less_often(troupe: Begin) -> None:
    one = troupe({"name": "a", "do": "fail"}, backoff={"first": 0.02, "most": 60.0})
    for count in range(1, 6):
        one.wait("supervisor", "died", count)
    assert not gone(one.process.pid)
    # 0.02, 0.04, 0.08, 0.16, 0.32 s: were it not so, far more would have gone by.
    one.process.terminate()
    assert one.process.wait(10) == 0
    assert len(one.lines("a", "begun")) < 9


def test_a_child_that_is_not_to_be_restarted_is_not_and_the_service_ends_with_the_last(troupe: Begin) -> None:
    one = troupe({"name": "a", "do": "return", "restart": False})
    assert one.process.wait(10) == 0
    assert len(one.lines("a", "begun")) == 1
    other = troupe({"name": "a", "do": "fail", "restart": False})
    assert other.process.wait(10) == 1


def test_a_child_can_call_the_service_off_with_a_reason(troupe: Begin) -> None:
    one = troupe({"name": "a", "do": "wait"}, {"name": "b", "do": "fatal"})
    assert one.process.wait(10) == 1
    assert one.wait("supervisor", "failure")["text"] == "another process serves this name"
    assert len(one.lines("a", "ended")) == len(one.lines("a", "begun"))


def test_a_death_is_told_to_those_who_want_to_know(troupe: Begin) -> None:
    one = troupe({"name": "listener", "do": "wait", "events": True}, {"name": "b", "do": "wait"})
    one.wait("listener", "begun")
    pid = one.wait("b", "begun")["pid"]
    os.kill(pid, signal.SIGKILL)
    one.wait("b", "begun", 2)
    wait_until(
        lambda: any(
            line["line"].get("died") == "b"
            and line["line"]["pid"] == pid
            and line["line"]["status"] == "killed by SIGKILL"
            for line in one.lines("listener", "line")
        ),
        "the listener has heard of the death",
    )


def test_a_child_can_send_lines_to_another(troupe: Begin) -> None:
    one = troupe({"name": "listener", "do": "wait"}, {"name": "b", "do": "tell"})
    assert one.wait("listener", "line")["line"] == {"free": 1, "from": "b"}


def test_sigterm_is_passed_on_and_waited_for(troupe: Begin) -> None:
    one = troupe({"name": "a", "do": "wait"}, {"name": "b", "do": "wait"})
    one.wait("a", "begun")
    one.wait("b", "begun")
    one.process.terminate()
    assert one.process.wait(10) == 0
    assert len(one.lines("a", "ended")) == len(one.lines("b", "ended")) == 1


def test_a_child_that_is_to_be_last_is_signalled_when_the_others_have_ended(troupe: Begin) -> None:
    one = troupe({"name": "a", "do": "wait", "last": True}, {"name": "b", "do": "wait"})
    one.wait("a", "begun")
    one.wait("b", "begun")
    one.process.terminate()
    assert one.process.wait(10) == 0
    names = [
        json.loads(line)["name"] for line in one.log.read_text().splitlines() if json.loads(line)["what"] == "ended"
    ]
    assert names == ["b", "a"]


def test_a_child_that_does_not_end_in_time_is_killed(troupe: Begin) -> None:
    one = troupe({"name": "a", "do": "deaf"}, grace=0.3)
    pid = one.wait("a", "begun")["pid"]
    one.process.send_signal(signal.SIGINT)
    assert one.process.wait(10) == 0
    assert gone(pid)
    assert one.lines("supervisor", "killing") == [one.lines("supervisor", "killing")[0]]


def test_a_second_signal_kills_at_once(troupe: Begin) -> None:
    one = troupe({"name": "a", "do": "deaf"}, grace=60)
    pid = one.wait("a", "begun")["pid"]
    one.process.terminate()
    one.wait("supervisor", "stopping")

    def again() -> bool:
        # Within the first second it counts as the same: terminals and managers like to say things twice.
        if one.process.poll() is None:
            one.process.terminate()
        return one.process.poll() is not None

    wait_until(again, "the service has ended", timeout=5)
    assert gone(pid)


def test_children_die_with_a_killed_supervisor(troupe: Begin) -> None:
    one = troupe({"name": "a", "do": "deaf"}, {"name": "b", "do": "wait"})
    pids = [one.wait(name, "begun")["pid"] for name in "ab"]
    one.process.kill()
    one.process.wait(5)
    wait_until(lambda: all(gone(pid) for pid in pids), "the children have died with it", timeout=3)


def test_what_a_dead_child_left_behind_is_swept_away(troupe: Begin) -> None:
    one = troupe({"name": "a", "do": "brood"})
    orphan = one.wait("a", "child")["child"]
    os.kill(one.wait("a", "begun")["pid"], signal.SIGKILL)
    wait_until(lambda: gone(orphan), "the orphan is gone")
    one.process.terminate()
    one.process.wait(10)
    assert descendants(one.process.pid) == []


def test_two_children_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two children"):
        Supervisor([ChildSpec("a", lambda context: None), ChildSpec("a", lambda context: None)])
