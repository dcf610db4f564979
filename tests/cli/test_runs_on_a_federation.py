"""Submitting, following, looking at and fetching runs, on a federation whose services the commands started."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fedq.apps.history import History
from tests.cli.conftest import Call, Said
from tests.cli.deployment import NODES, Deployment, deployment, write_project
from tests.support import wait_until
from tests.support.services import SCRIPTS

SLOW = """
import time

@app.train()
def train(message, context):
    print("hello from", context.node_id)
    time.sleep(float(context.run_config["pause"]))
    arrays = message.content["arrays"].to_numpy_ndarrays()
    metrics = MetricRecord({"loss": 1.0, "num-examples": 1})
    return Message(RecordDict({"arrays": ArrayRecord([arrays[0] + 1]), "metrics": metrics}), reply_to=message)
"""


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployment(tmp_path_factory.mktemp("federation")) as running:
        yield running


@pytest.fixture
def fedq(federation: Deployment, call: Call) -> Call:
    def run(*words: object) -> Said:
        return call(*words, url=federation.url)

    return run


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return write_project(tmp_path, client=SLOW, config="pause = 0.0")


def test_a_followed_run_shows_its_rounds_and_says_how_to_go_on(fedq: Call, project: Path) -> None:
    said = fedq("run", project, "--follow", "--config", "num-rounds=2").succeeds()
    lines = said.out.splitlines()
    number = int(lines[0].split()[1])
    assert lines[0] == f"run {number} is submitted"
    assert any(line.startswith("round 1/2  loss 1.0000") for line in lines)
    assert any(line.startswith("round 2/2") for line in lines)
    assert lines[-1] == f"run {number} finished; fedq pull {number} writes its arrays and metrics to files"
    assert said.err == ""


def test_a_followed_run_can_be_one_json_object(fedq: Call, project: Path) -> None:
    said = fedq("run", project, "--follow", "--json", "--name", "mine").succeeds()
    assert said.json["status"] == "finished"
    assert [ended["metrics"] for ended in said.json["rounds"]] == [{"loss": 1.0}]
    assert said.err == ""
    listed = {run["run_id"]: run for run in fedq("runs", "--json").json}
    assert listed[said.json["run_id"]]["name"] == "mine"


def test_a_run_that_fails_says_so_in_json_too(fedq: Call, tmp_path: Path) -> None:
    project = write_project(
        tmp_path, server="@app.main()\ndef main(grid, context):\n    raise RuntimeError('no luck')\n"
    )
    said = fedq("run", project, "--follow", "--json")
    said.fails(1, "no luck")
    assert said.json["status"] == "failed"
    assert "no luck" in said.json["reason"]
    number = said.json["run_id"]
    log = fedq("log", number).succeeds().out
    assert "Traceback (most recent call last)" in log
    assert "RuntimeError: no luck" in log
    fedq("pull", number).fails(1, "failed", "no luck", f"fedq log {number}")


def points(board: Path, tag: str) -> list[tuple[int, float]]:
    """What TensorBoard shows of the only run in a folder."""
    (folder,) = board.iterdir()
    written = EventAccumulator(str(folder))
    written.Reload()
    return [(point.step, point.value) for point in written.Scalars(tag)]


GIVES_UP = """
from pathlib import Path

from fedq.apps import ArrayRecord, ServerApp
from fedq.apps.strategy import FedAvg
import numpy as np

app = ServerApp()


@app.main()
def main(grid, context):
    def evaluate(number, arrays):
        if number == 2 and not Path(context.run_config["disk"]).exists():
            raise OSError("the disk is not there")

    strategy = FedAvg(fraction_evaluate=0.0)
    strategy.start(grid, ArrayRecord([np.zeros(2)]), num_rounds=3, evaluate_fn=evaluate)
"""


def test_a_run_that_failed_goes_on_when_what_it_lacked_is_there(fedq: Call, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    project = write_project(tmp_path, server=GIVES_UP, client=SLOW, config=f'pause = 0.0\ndisk = "{disk}"')
    said = fedq("run", project, "--follow", "--json")
    said.fails(1, "the disk is not there", "goes on from checkpoint")
    number = said.json["run_id"]
    assert next(run for run in fedq("runs", "--json").json if run["run_id"] == number)["resumable"]
    disk.mkdir()
    # Followed again from the beginning, into a folder where the first two rounds stand already.
    board = f"tensorboard:{tmp_path}/board"
    fedq("log", number, "--track", board).succeeds()
    resumed = fedq("run", "--resume", number, "--follow", "--track", board).succeeds()
    assert points(tmp_path / "board", "round/replies") == [(1, 3), (2, 3), (3, 3)]
    assert resumed.out.splitlines()[0] == f"run {number} is resumed"
    assert any(line.startswith("round 3/3") for line in resumed.out.splitlines())
    fedq("run", "--resume", number).fails(1, f"run {number} has finished")
    fedq("run", "--resume", 10**6).fails(1, "there is no run 1000000")


def test_a_run_is_resumed_as_it_was_submitted(fedq: Call, project: Path) -> None:
    fedq("run").fails(2, "name an APP, or a run with --resume")
    fedq("run", project, "--resume", 1).fails(2, "name an APP, or a run with --resume")
    fedq("run", "--resume", 1, "--config", "a=1").fails(2, "resumed as it was submitted")


def test_two_modules_are_submitted_as_objects(fedq: Call, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(project))
    words = [f"app_under_test.{name}_app:app" for name in ("server", "client")]
    config = ["-c", "num-rounds=1", "-c", "nodes=3", "-c", "timeout=20.0", "-c", "pause=0.0"]
    assert "finished" in fedq("run", *words, "--follow", *config).succeeds().out


def test_only_nodes_with_the_label_take_part(fedq: Call, project: Path) -> None:
    words = ["--follow", "--json", "--node-label", "site=b", "--config", "nodes=1"]
    number = fedq("run", project, *words).succeeds().json["run_id"]
    log = fedq("log", number).out
    assert "hello from b" in log
    assert "hello from a" not in log


def test_the_log_holds_what_apps_print_and_can_be_narrowed_to_a_node(fedq: Call, project: Path) -> None:
    number = fedq("run", project, "--follow", "--json").succeeds().json["run_id"]
    log = fedq("log", number).succeeds().out
    for name in NODES:
        assert f"{name} info: hello from {name}" in log
    assert "round 1/1" in log
    assert {line.split()[1] for line in fedq("log", number, "--node", "b").succeeds().out.splitlines()} == {"b"}
    fedq("log", number, "--node", "clinic-b").fails(1, "no node is registered as clinic-b", "fedq nodes")
    events = [json.loads(line) for line in fedq("log", number, "--json").succeeds().out.splitlines()]
    assert {"status", "strategy", "round", "log"} <= {event["kind"] for event in events}
    assert [event["time"] for event in events] == sorted(event["time"] for event in events)


def test_arrays_and_history_are_pulled_into_files(
    fedq: Call, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    number = fedq("run", project, "--follow", "--json", "-c", "num-rounds=2").succeeds().json["run_id"]
    paths = fedq("pull", number, "--json").succeeds().json["paths"]
    assert paths == {
        "arrays": f"run-{number}/arrays.npz",
        "csv": f"run-{number}/history.csv",
        "json": f"run-{number}/history.json",
    }
    with np.load(paths["arrays"], allow_pickle=False) as arrays:
        assert np.array_equal(arrays["0"], [2.0, 2.0, 2.0])
    told = json.loads(Path(paths["json"]).read_text())
    assert (told["status"], told["attempts"], told["config"]["num-rounds"]) == ("finished", 1, 2)
    assert [(ended["round"], ended["train"]) for ended in told["rounds"]] == [(1, {"loss": 1.0}), (2, {"loss": 1.0})]
    assert History.from_json(Path(paths["json"]).read_text()).to_csv() == Path(paths["csv"]).read_text()
    fedq("pull", number).fails(1, "is there already", "--force")
    fedq("pull", number, "--force").succeeds()
    fedq("pull", number, "-o", "elsewhere", "--plot", "--format", "csv").succeeds()
    assert sorted(path.name for path in Path("elsewhere").iterdir()) == ["arrays.npz", "history.csv", "history.png"]
    fedq("runs", "rm", number).succeeds()
    fedq("pull", number, "-o", "again").fails(1, f"there is no run {number}")
    assert not Path("again").exists()


def test_a_followed_run_is_tracked_and_tracked_again_without_double_points(
    fedq: Call, project: Path, tmp_path: Path
) -> None:
    board = f"tensorboard:{tmp_path}/board"
    number = (
        fedq("run", project, "--follow", "--json", "-c", "num-rounds=2", "--track", board).succeeds().json["run_id"]
    )
    fedq("log", number, "--track", board).succeeds()
    (folder,) = (tmp_path / "board").iterdir()
    assert folder.name.startswith(f"run-{number}-")
    assert len(list(folder.iterdir())) == 2
    assert points(tmp_path / "board", "train/loss") == [(1, 1.0), (2, 1.0)]


def test_a_tracker_that_cannot_be_had_is_told_before_anything_is_submitted(fedq: Call, project: Path) -> None:
    before = fedq("runs", "--json").json
    fedq("run", project, "--track", "tensorboard:x").fails(2, "--track needs --follow")
    fedq("run", project, "-f", "--track", "paper:x").fails(2, "is no tracker; there are tensorboard:DIR")
    fedq("run", project, "-f", "--track", "wandb:x").fails(1, "pip install 'fedq[wandb]'")
    assert fedq("runs", "--json").json == before


def test_a_tracker_that_cannot_begin_does_not_end_the_run(fedq: Call, project: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    fedq("run", project, "-f", "--track", f"tensorboard:{tmp_path}/file").fails(1, "goes on", "--track … follows it")
    wait_until(lambda: fedq("runs", "--json").json[0]["status"] == "finished", "the run has finished", timeout=20)


def test_a_detached_run_goes_on_and_can_be_followed_and_stopped(fedq: Call, project: Path, tmp_path: Path) -> None:
    said = fedq("run", project, "--config", "pause=60.0").succeeds()
    number = int(said.out.split()[1])
    assert f"fedq log -f {number}" in said.out
    wait_until(lambda: fedq("runs", "--json").json[0]["status"] == "running", "the run is running", timeout=20)
    fedq("pull", number).fails(1, "running", f"fedq log -f {number}")
    fedq("stop", number).succeeds()
    assert "stopped" in fedq("log", "-f", number).succeeds().out
    fedq("pull", number).fails(1, "stopped", "--no-arrays")
    fedq("pull", number, "--no-arrays", "-o", tmp_path / "stopped").succeeds()
    assert json.loads((tmp_path / "stopped" / "history.json").read_text())["status"] == "stopped"


def test_following_ends_at_its_timeout_and_the_run_goes_on(fedq: Call, project: Path) -> None:
    said = fedq("run", project, "--follow", "--timeout", "1s", "--config", "pause=60.0")
    number = int(said.out.split()[1])
    said.fails(1, f"run {number} is not over after 1 s", f"fedq stop {number}")
    assert fedq("runs", "--json").json[0]["status"] == "running"
    fedq("stop", number).succeeds()


def test_a_stopped_run_ends_whoever_follows_it_with_code_1(federation: Deployment, fedq: Call, project: Path) -> None:
    with subprocess.Popen(
        [str(SCRIPTS / "fedq"), "run", str(project), "--follow", "--config", "pause=60.0"],
        env={**os.environ, "FEDQ_REDIS_URL": federation.url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        number = int(process.stdout.readline().split()[1])
        fedq("stop", number).succeeds()
        _, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert err.startswith(f"fedq: run {number} was stopped")


def test_ctrl_c_ends_the_following_and_not_the_run(federation: Deployment, fedq: Call, project: Path) -> None:
    with subprocess.Popen(
        [str(SCRIPTS / "fedq"), "run", str(project), "--follow", "--config", "pause=60.0"],
        env={**os.environ, "FEDQ_REDIS_URL": federation.url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        number = int(process.stdout.readline().split()[1])
        while "running" not in process.stdout.readline():
            pass
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert f"fedq stop {number}" in err
    assert fedq("runs", "--json").json[0]["status"] == "running"
    fedq("stop", number).succeeds()


def test_two_runs_of_different_apps_share_the_nodes(fedq: Call, tmp_path: Path) -> None:
    projects = [
        write_project(tmp_path, client=SLOW.replace("+ 1", f"+ {step}"), package=f"app_{step}", config="pause = 0.2")
        for step in (1, 10)
    ]
    numbers = [fedq("run", project, "--json", "-c", "num-rounds=3").succeeds().json["run_id"] for project in projects]
    seen_together = False

    def both_over() -> bool:
        nonlocal seen_together
        status = {run["run_id"]: run["status"] for run in fedq("runs", "--json").json}
        seen_together |= all(status[number] == "running" for number in numbers)
        return all(status[number] == "finished" for number in numbers)

    wait_until(both_over, "both runs have finished", timeout=60)
    assert seen_together
    for number, step in zip(numbers, (1, 10), strict=True):
        fedq("pull", number, "-o", tmp_path / f"out{step}").succeeds()
        with np.load(tmp_path / f"out{step}" / "arrays.npz") as arrays:
            assert np.array_equal(arrays["0"], np.full(3, 3.0 * step))


def test_nothing_is_left_of_an_ended_run_but_what_is_kept(federation: Deployment, fedq: Call, project: Path) -> None:
    number = fedq("run", project, "--follow", "--json").succeeds().json["run_id"]

    base = "fedq:{0}:"
    kept = {f"{base}run:{number}", f"{base}run:{number}:events"}

    def left() -> set[str]:
        """Keys that last: of this run, and answers and arrays, which are of no other run either."""
        keys = federation.server.keys(f"{base}*")
        of_the_run = re.compile(rf":{number}(:|$)|:out:|obj:")
        return {key for key in keys if of_the_run.search(key.removeprefix(base[:-1]))}

    wait_until(lambda: kept <= left(), "status and events are kept")
    # The result's arrays are small and stand in the run itself.
    wait_until(lambda: left() <= kept | {f"{base}run:{number}:objs"}, lambda: f"left: {left() - kept}")
    findings = {item["subject"]: item for item in fedq("doctor", "--json").succeeds().json["findings"]}
    assert findings["orphaned keys"]["level"] == "ok"
    assert findings["nodes"]["text"] == "3 of 3 online"
    assert findings["superlinks"]["text"] == "1 at work"


def test_the_version_names_the_server_too(fedq: Call, federation: Deployment) -> None:
    lines = fedq("--version").succeeds().out.splitlines()
    assert lines[0].startswith("fedq ")
    assert lines[1].startswith(f"server: {federation.server.kind} ")
