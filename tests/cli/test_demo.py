"""``fedq demo`` trains the digits app for real, tells about it, and leaves nothing running."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tomllib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from fedq.apps.testing import Federation
from fedq.cli.federation import LocalFederation
from fedq.relay import SuperLink
from tests.cli.conftest import Call
from tests.cli.deployment import running, write_project
from tests.support import descendants, gone, wait_until

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "examples" / "digits"
ROUNDS = 4

SLOW = """
import time

@app.train()
def train(message, context):
    time.sleep(float(context.run_config["pause"]))
    arrays = message.content["arrays"].to_numpy_ndarrays()
    return Message(
        RecordDict({"arrays": ArrayRecord([arrays[0] + 1]), "metrics": MetricRecord({"num-examples": 1})}),
        reply_to=message,
    )
"""


demo = partial(running, "demo")


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What ``fedq demo --json`` prints after a few rounds, with the folder it ran in."""
    folder = tmp_path_factory.mktemp("demo")
    with demo("--json", "--rounds", str(ROUNDS), folder=folder) as process:
        out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    # Nothing for a person, when there is none.
    assert err == ""
    return {**json.loads(out), "folder": folder}


def test_the_json_is_one_object_with_all_that_happened(result: dict[str, object]) -> None:
    assert result["status"] == "finished"
    assert result["run_id"] == 1
    assert result["nodes"] == 6
    rounds = result["rounds"]
    assert isinstance(rounds, list)
    assert [ended["number"] for ended in rounds] == list(range(1, ROUNDS + 1))
    for ended in rounds:
        assert 0 < ended["accuracy"] <= 1
        assert ended["loss"] > 0
        assert ended["seconds"] > 0
        assert ended["failures"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("isolation", ["fork", "run", "inline"])
def test_the_federated_model_is_good_and_better_than_what_nodes_can_do_alone(tmp_path: Path, isolation: str) -> None:
    with demo("--json", "--isolation", isolation, folder=tmp_path) as process:
        out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    told = json.loads(out)
    assert len(told["rounds"]) == 20
    assert told["accuracy"] >= 0.93
    assert told["accuracy"] > told["alone_accuracy_mean"]


def test_model_history_and_plot_are_where_it_says(result: dict[str, object]) -> None:
    folder, paths = result["folder"], result["paths"]
    assert isinstance(folder, Path)
    assert isinstance(paths, dict)
    with np.load(folder / paths["model"], allow_pickle=False) as model:
        assert all(np.isfinite(model[name]).all() for name in model.files)
        assert model.files
    history = json.loads((folder / paths["history"]).read_text())
    assert [told["round"] for told in history["rounds"]] == list(range(ROUNDS + 1))
    assert history["rounds"][-1]["server"]["accuracy"] == result["accuracy"]
    assert (folder / paths["plot"]).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def in_this_process(rounds: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The final arrays of the digits in `fedq.apps.testing`."""
    config = tomllib.loads((DIGITS / "pyproject.toml").read_text())["tool"]["fedq"]["app"]["config"]
    monkeypatch.syspath_prepend(str(DIGITS))
    from digits.client_app import app as client_app
    from digits.server_app import app as server_app

    run = Federation(nodes=6).run(server_app, client_app, config={**config, "min-nodes": 6, "num-rounds": rounds})
    return {name: array.numpy() for name, array in run.result.arrays.items()}


def same_bits(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    return list(ours) == list(theirs) and all(
        ours[name].dtype == theirs[name].dtype and ours[name].tobytes() == theirs[name].tobytes() for name in ours
    )


def test_a_federation_in_this_process_computes_the_same_bits(
    result: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, paths = result["folder"], result["paths"]
    assert isinstance(folder, Path)
    assert isinstance(paths, dict)
    with np.load(folder / paths["model"]) as model:
        assert same_bits(dict(model), in_this_process(ROUNDS, monkeypatch))


@pytest.mark.slow
def test_another_app_on_the_same_six_nodes_at_the_same_time_changes_no_bit(
    call: Call, tmp_path: Path, short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = write_project(tmp_path, config="pause = 0.1", client=SLOW)
    with LocalFederation(nodes=6, directory=short_folder, runs=3) as federation:
        assert list(federation.wait_until_online())[-1] == 6
        with SuperLink.connect(federation.url) as link:
            digits = {"num-rounds": ROUNDS, "min-nodes": 6}
            runs = [
                link.submit(str(project), config=config)
                for project, config in ((DIGITS, digits), (other, {"num-rounds": 8, "nodes": 6}), (DIGITS, digits))
            ]
            results = [run.result(timeout=120) for run in runs]
            spans = [(info.started or 0.0, info.ended or 0.0) for info in (run.info() for run in runs)]
        assert max(start for start, _ in spans) < min(end for _, end in spans), "all ran at the same time"
    first, steps, second = ({name: array.numpy() for name, array in one.arrays.items()} for one in results)
    assert np.array_equal(steps["0"], np.full(3, 8.0))
    assert same_bits(first, second)
    assert same_bits(first, in_this_process(ROUNDS, monkeypatch))


def test_without_a_terminal_it_prints_lines_and_trains_any_project(tmp_path: Path) -> None:
    project = write_project(tmp_path)
    words = ("--nodes", "2", "--config", "nodes=2", "--rounds", "2", "--out", "here", "--keep", "kept")
    with demo(str(project), *words, folder=tmp_path) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    lines = out.splitlines()
    assert "2 of 2 nodes online" in lines
    assert any(line.startswith("round 1/2") for line in lines)
    assert any(line.startswith("run 1 finished: 2 rounds on 2 nodes") for line in lines)
    assert sum("new my-app" in line or "demo my-app" in line for line in lines) == 2
    with np.load(tmp_path / "here" / "model.npz") as model:
        assert np.array_equal(model["0"], [2.0, 2.0, 2.0])
    assert (tmp_path / "kept" / "server" / "data").is_dir()
    assert (tmp_path / "kept" / "superlink.log").is_file()


def test_an_app_that_fails_ends_the_demo_with_the_reason(tmp_path: Path) -> None:
    project = write_project(
        tmp_path, server="@app.main()\ndef main(grid, context):\n    raise RuntimeError('no luck')\n"
    )
    with demo(str(project), "--nodes", "1", folder=tmp_path) as process:
        _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    (line,) = err.splitlines()
    assert line.startswith("fedq: run 1 failed: ")
    assert "no luck" in line
    assert line.endswith("its log is in demo-output/run.log")
    assert "RuntimeError: no luck" in (tmp_path / "demo-output" / "run.log").read_text()


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, 130, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, -9, marks=pytest.mark.slow),
    ],
    ids=lambda value: str(value),
)
def test_nothing_is_left_after(number: signal.Signals, code: int, tmp_path: Path, short_folder: Path) -> None:
    project = write_project(
        tmp_path, client="import time\n@app.train()\ndef train(message, context):\n    time.sleep(600)\n"
    )
    with demo(
        str(project), "--nodes", "2", "--config", "nodes=2", "--keep", str(short_folder), folder=tmp_path
    ) as process:
        assert process.stdout is not None
        seen = ""
        while "submitted" not in seen:
            line = process.stdout.readline()
            assert line, f"it ended after {seen!r}: {process.stderr.read() if process.stderr else ''}"
            seen += line
        wait_until(lambda: len(descendants(process.pid)) >= 8, "the services and their workers are there", timeout=30)
        family = [child.pid for child in descendants(process.pid)]
        process.send_signal(number)
        assert process.wait(timeout=30) == code
        wait_until(
            lambda: all(gone(pid) for pid in family),
            lambda: (
                "these still run: " + "; ".join(" ".join(psutil.Process(p).cmdline()) for p in family if not gone(p))
            ),
            timeout=15,
        )


def test_a_mistake_in_the_project_is_told_before_anything_is_started(call: Call, tmp_path: Path) -> None:
    assert call("demo", tmp_path).fails(1, "has no pyproject.toml").out == ""
    project = write_project(tmp_path)
    assert call("demo", project, "--config", "rounds=3").fails(1, "no 'rounds' to override").out == ""


def test_a_demo_without_what_the_digits_need_says_what_to_install(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedq.cli import demo as module

    monkeypatch.setattr(module, "_installed", lambda name: name != "sklearn")
    call("demo").fails(1, 'pip install "fedq[embedded,demo]"')


def test_the_script_is_what_it_says(tmp_path: Path) -> None:
    script = (ROOT / "scripts" / "demo").read_text()
    assert "make_env embedded,demo" in script
    assert os.access(ROOT / "scripts" / "demo", os.X_OK)
    done = subprocess.run(["bash", "-n", str(ROOT / "scripts" / "demo")], check=False)
    assert done.returncode == 0
