"""Listing, registering and removing nodes; listing, stopping and removing runs."""

from __future__ import annotations

import time

import pytest
import redis as redis_py

from fedq.relay.connection import Relay
from fedq.relay.nodes import NodeInfo, beat, leave, register
from fedq.relay.runs import RunSpec, stop_run, submit
from tests.cli.conftest import Call

pytestmark = pytest.mark.leaves_keys


def new_run(relay: Relay, name: str = "") -> int:
    return submit(relay, RunSpec(client_token=f"{name}-{time.monotonic_ns()}", name=name, user="ada"))


def test_without_nodes_and_runs_the_lists_say_how_to_get_some(served: Call) -> None:
    assert "fedq supernode --name" in served("nodes").succeeds().out
    assert "fedq run APP" in served("runs").succeeds().out
    assert served("nodes", "--json").succeeds().json == []
    assert served("runs", "--json").succeeds().json == []


def test_nodes_are_listed_with_state_and_labels(served: Call, relay: Relay) -> None:
    register(relay, "b", NodeInfo(labels={"site": "eu", "gpu": "1"}, slots=2, isolation="run", host="h"))
    served("nodes", "add", "a").succeeds()
    beat(relay, "b")
    lines = served("nodes").succeeds().out.splitlines()
    assert lines[0].split() == ["NODE", "STATE", "SLOTS", "ISOLATION", "LABELS", "HOST"]
    assert lines[1].split()[:2] == ["a", "offline"]
    assert lines[2].split() == ["b", "online", "2", "run", "gpu=1", "site=eu", "h"]
    listed = {node["name"]: node for node in served("nodes", "--json").succeeds().json}
    assert listed["b"]["online"]
    assert listed["b"]["labels"] == {"site": "eu", "gpu": "1"}
    assert not listed["a"]["online"]


def test_nodes_are_selected_by_label(served: Call, relay: Relay) -> None:
    register(relay, "a", NodeInfo(labels={"site": "us"}))
    register(relay, "b", NodeInfo(labels={"site": "eu"}))
    assert [node["name"] for node in served("nodes", "--node-label", "site=eu", "--json").succeeds().json] == ["b"]
    assert "no node has these labels" in served("nodes", "-l", "site=asia").succeeds().out


def test_a_node_is_removed_when_it_is_offline(served: Call, relay: Relay) -> None:
    register(relay, "a", NodeInfo())
    beat(relay, "a")
    served("nodes", "rm", "a").fails(1, "a is online", "--force")
    leave(relay, "a")
    served("nodes", "rm", "a").succeeds()
    assert served("nodes", "--json").json == []
    served("nodes", "rm", "a").fails(1, "no node is registered as a", "fedq nodes")


def test_a_name_that_no_node_can_have_is_not_registered(served: Call) -> None:
    served("nodes", "add", "clinic_a").fails(1, "clinic_a", "clinic-a")
    assert served("nodes", "--json").json == []


def test_runs_are_listed_newest_first(served: Call, relay: Relay) -> None:
    first, second = new_run(relay, "one"), new_run(relay, "two")
    stop_run(relay, first, "enough")
    lines = served("runs").succeeds().out.splitlines()
    assert lines[1].split()[:4] == [str(second), "two", "pending", "ada"]
    assert lines[2].split()[:4] == [str(first), "one", "stopped", "ada"]
    assert lines[2].endswith("enough")
    listed = served("runs", "--json").succeeds().json
    assert [run["run_id"] for run in listed] == [second, first]
    assert listed[1]["reason"] == "enough"
    assert [run["run_id"] for run in served("runs", "--limit", "1", "--json").json] == [second]


def test_a_run_is_stopped_once(served: Call, relay: Relay) -> None:
    run = new_run(relay)
    assert served("stop", run).succeeds().out == f"run {run} is stopped\n"
    assert served("stop", run).succeeds().out == f"run {run} was stopped already\n"
    assert served("stop", run, "--json").json == {"run_id": run, "stopped": False, "status": "stopped"}


@pytest.mark.parametrize("words", [("stop", "7"), ("runs", "rm", "7")])
def test_a_run_that_does_not_exist_is_told(served: Call, words: tuple[str, ...]) -> None:
    served(*words).fails(1, "there is no run 7", "fedq runs")


def test_a_run_is_removed_when_it_is_over(served: Call, relay: Relay, redis: redis_py.Redis) -> None:
    run = new_run(relay)
    served("runs", "rm", run).fails(1, "not over", f"fedq stop {run}")
    stop_run(relay, run)
    served("runs", "rm", run).succeeds()
    assert served("runs", "--json").json == []
    assert not [key for key in redis.keys("fedq:*") if f":run:{run}".encode() in key]


def test_removing_several_runs_removes_none_when_one_is_not_over(served: Call, relay: Relay) -> None:
    over, alive = new_run(relay), new_run(relay)
    stop_run(relay, over)
    served("runs", "rm", over, alive).fails(1, f"run {alive}")
    assert len(served("runs", "--json").json) == 2


def test_prune_removes_what_ended_long_enough_ago(served: Call, relay: Relay) -> None:
    over, alive = new_run(relay), new_run(relay)
    stop_run(relay, over)
    assert served("runs", "prune").succeeds().out == "nothing to remove\n"
    assert served("runs", "prune", "--older-than", "0", "--json").succeeds().json == {"removed": [over]}
    assert [run["run_id"] for run in served("runs", "--json").json] == [alive]


def test_what_nodes_impose_is_shown(served: Call, relay: Relay) -> None:
    register(relay, "a", NodeInfo(mods=("fedq.apps.mod:SizeLimitMod(1000)", "rules:no_small_cohorts")))
    register(relay, "b", NodeInfo())
    table = served("nodes").succeeds().out.splitlines()
    assert table[0].split()[-1] == "MODS"
    assert table[1].split()[-2:] == ["SizeLimitMod", "no_small_cohorts"]
    assert [node["mods"] for node in served("nodes", "--json").json] == [
        ["fedq.apps.mod:SizeLimitMod(1000)", "rules:no_small_cohorts"],
        [],
    ]
