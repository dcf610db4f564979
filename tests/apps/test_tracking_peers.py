"""What MLflow and Weights & Biases themselves have written is read back. They run in a process of their own, with their
packages from a shelf."""

from __future__ import annotations

import json
import os
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.shelves import path_with, shelf

pytestmark = pytest.mark.peer

TRACKED = """
import json, os, sys
from pathlib import Path
from fedq.apps.testing import Event
from fedq.apps.tracking import TrackedRun, track, tracker_named

config = {"num-rounds": 2, "rate": 0.5, "a/b c": "x" * 9000}
run = TrackedRun("run-7-20260102-030405-006", "first try", config)

def ended(number, loss):
    data = {"round": number, "rounds": 2, "train": {"loss": loss, "top@5": 1}, "seconds": 0.5}
    return Event("round", data, 100.0 + number)

events = [
    Event("status", {"status": "running"}, 99.0),
    Event("strategy", {"strategy": "FedAvg", "rounds": 2, "server": {"loss": 4.0}}, 100.0),
    ended(1, 2.0),
    ended(2, float("nan")),
    Event("metric", {"name": "epsilon", "value": 3.0}, 103.0),
    Event("status", {"status": sys.argv[2]}, 104.0),
]
"""


def run(script: str, *words: str, shelf_name: str, folder: Path, **environment: str) -> Any:
    """What a script, put behind `TRACKED`, prints as JSON on its last line."""
    done = subprocess.run(
        [sys.executable, "-c", TRACKED + script, *words],
        env={
            **os.environ,
            **environment,
            "PYTHONPATH": path_with(shelf(shelf_name)),
            "HOME": str(folder),
            "DO_NOT_TRACK": "true",
        },
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


# -- MLflow ------------------------------------------------------------------------------------------------------------

MLFLOW = """
tracker = lambda: tracker_named(f"mlflow:{sys.argv[1]}")
# Whoever followed first was interrupted behind round 1. Then somebody follows the run from its beginning, twice.
track(events[:3], run, tracker())
for _ in range(2):
    track(events, run, tracker())

from mlflow import MlflowClient

client = MlflowClient(tracking_uri=sys.argv[1])
experiment = client.get_experiment_by_name("fedq")
found = client.search_runs([experiment.experiment_id])
data = found[0].data
history = {name: client.get_metric_history(found[0].info.run_id, name) for name in data.metrics}
points = {
    name: [(point.step, repr(point.value), point.timestamp) for point in metric] for name, metric in history.items()
}
told = {"runs": len(found), "status": found[0].info.status, "name": found[0].info.run_name, "params": data.params}
print(json.dumps({**told, "tag": data.tags["fedq.run"], "points": points}))
"""


def test_mlflow_holds_each_point_once_however_often_a_run_is_tracked(tmp_path: Path) -> None:
    told = run(MLFLOW, f"sqlite:///{tmp_path}/mlflow.db", "finished", shelf_name="mlflow", folder=tmp_path)
    assert (told["runs"], told["status"], told["name"]) == (1, "FINISHED", "first try")
    assert told["tag"] == "run-7-20260102-030405-006"
    assert {name: value[:20] for name, value in told["params"].items()} == {
        "num-rounds": "2",
        "rate": "0.5",
        "a/b c": "x" * 20,
    }
    assert told["points"] == {
        "server/loss": [[0, "4.0", 100_000]],
        "train/loss": [[1, "2.0", 101_000], [2, "nan", 102_000]],
        "train/top_5": [[1, "1.0", 101_000], [2, "1.0", 102_000]],
        "round/seconds": [[1, "0.5", 101_000], [2, "0.5", 102_000]],
        "app/epsilon": [[2, "3.0", 103_000]],
    }
    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        rows = store.execute("select key, step, value from metrics where is_nan = 0 order by key, step").fetchall()
    store.close()
    assert rows == [
        ("app/epsilon", 2, 3.0),
        *[("round/seconds", step, 0.5) for step in (1, 2)],
        ("server/loss", 0, 4.0),
        ("train/loss", 1, 2.0),
        *[("train/top_5", step, 1.0) for step in (1, 2)],
    ]


def test_mlflow_may_keep_its_runs_in_a_folder(tmp_path: Path) -> None:
    store = tmp_path / "mlruns"
    told = run(MLFLOW, f"file:{store}", "stopped", shelf_name="mlflow", folder=tmp_path, MLFLOW_ALLOW_FILE_STORE="true")
    assert (told["runs"], told["status"]) == (1, "KILLED")
    (loss,) = store.glob("*/*/metrics/train/loss")
    assert [line.split() for line in loss.read_text().splitlines()] == [["101000", "2.0", "1"], ["102000", "nan", "2"]]


# -- Weights & Biases --------------------------------------------------------------------------------------------------

WANDB = """
track(events, run, tracker_named(f"wandb:{sys.argv[1]}"))
import wandb
wandb.teardown()
print(json.dumps({"file": [str(path) for path in Path("wandb").glob("offline-run-*/*.wandb")]}))
"""

READ = """
from wandb.proto.wandb_internal_pb2 import Record

found = {"history": []}
for part in json.loads(Path(sys.argv[1]).read_text()):
    record = Record()
    record.ParseFromString(bytes.fromhex(part))
    kind = record.WhichOneof("record_type")
    if kind == "history":
        items = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        found["history"].append({name: value for name, value in items.items() if name[0] != "_" or name == "_step"})
    elif kind == "run":
        config = {item.key: json.loads(item.value_json) for item in record.run.config.update}
        found |= {"id": record.run.run_id, "project": record.run.project, "name": record.run.display_name}
        found["config"] = config
    elif kind == "exit":
        found["exit"] = record.exit.exit_code
print(json.dumps(found))
"""


def records(path: Path) -> Iterator[bytes]:
    """The records of a wandb file: 7 bytes of its own, then LevelDB's log format."""
    data, place, record = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if (rest := 32768 - place % 32768) < 7:
            place += rest
            continue
        _, size, kind = struct.unpack("<IHB", data[place : place + 7])
        record += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):
            yield record
            record = b""


def test_wandb_in_offline_mode_holds_config_points_and_outcome(tmp_path: Path) -> None:
    told = run(WANDB, "fedq-tests", "failed", shelf_name="wandb", folder=tmp_path, WANDB_MODE="offline")
    (path,) = told["file"]
    (tmp_path / "records.json").write_text(json.dumps([record.hex() for record in records(tmp_path / path)]))
    told = run(READ, str(tmp_path / "records.json"), "", shelf_name="wandb", folder=tmp_path)
    assert told["id"] == "run-7-20260102-030405-006"
    assert (told["project"], told["name"], told["exit"]) == ("fedq-tests", "first try", 1)
    assert told["config"]["rate"] == 0.5
    assert [point["_step"] for point in told["history"]] == [0, 1, 2]
    last = told["history"][-1]
    assert (last["round"], last["train/top@5"], last["app/epsilon"]) == (2, 1, 3.0)
    assert told["history"][0]["server/loss"] == 4.0
