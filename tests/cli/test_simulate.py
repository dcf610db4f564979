"""``fedq simulate`` computes what a deployment computes, shares the work, and leaves nothing behind."""

from __future__ import annotations

import json
import signal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedq.apps.testing import Federation
from fedq.cli.federation import LocalFederation
from fedq.relay import SuperLink, nodes
from fedq.relay.connection import Relay
from tests.cli.deployment import running, write_project
from tests.support import RealServer, Service, descendants, gone, wait_until
from tests.support.services import SCRIPTS

NODES = 12
ROUNDS = 3
OFF = {"gate": "", "dies": ""}

SERVER = """
import os, signal, threading, time

def die(path):
    while not os.path.exists(path):
        time.sleep(0.01)
    open(path + ".done", "w").close()
    os.kill(os.getpid(), signal.SIGKILL)

@app.main()
def main(grid, context):
    dies = context.run_config["dies"]
    if dies and not os.path.exists(dies + ".done"):
        threading.Thread(target=die, args=[dies], daemon=True).start()
    while context.run_config["gate"] and not os.path.exists(context.run_config["gate"]):
        time.sleep(0.02)
    strategy = FedAvg(fraction_train=0.5, fraction_evaluate=0.0, min_available_nodes=int(context.run_config["nodes"]))
    start = [np.zeros(3), np.arange(5000, dtype=np.float32)]
    strategy.start(grid, ArrayRecord(start), num_rounds=int(context.run_config["num-rounds"]))
"""

CLIENT = """
import os, time

@app.train()
def train(message, context):
    seen = int(context.state["seen"]["count"]) + 1 if "seen" in context.state else 1
    context.state["seen"] = MetricRecord({"count": seen})
    if (dies := context.run_config["dies"]) and seen == 2:
        open(dies, "w").close()
        while not os.path.exists(dies + ".done"):
            time.sleep(0.01)
    place = context.node_config["partition-id"] / context.node_config["num-partitions"]
    step = np.random.default_rng([context.node_config["partition-id"], seen]).normal() + place
    arrays = [array + array.dtype.type(step) for array in message.content["arrays"].to_numpy_ndarrays()]
    metrics = MetricRecord({"seen": seen, "num-examples": 1 + context.node_config["partition-id"]})
    return Message(RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=message)
"""


simulate = partial(running, "simulate")


def bits(arrays: Any) -> dict[str, bytes]:
    return {name: array.numpy().tobytes() for name, array in arrays.items()}


def written(path: str | Path) -> dict[str, bytes]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name].tobytes() for name in arrays.files}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_project(
        tmp_path_factory.mktemp("apps"),
        server=SERVER,
        client=CLIENT,
        package="seeded_app",
        config='gate = ""\ndies = ""',
    )


@pytest.fixture(scope="module")
def simulated(project: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What ``fedq simulate --json`` prints, with the arrays that it wrote."""
    folder = tmp_path_factory.mktemp("simulated")
    words = ("--nodes", str(NODES), "--config", f"nodes={NODES}", "--config", f"num-rounds={ROUNDS}", "--json")
    with simulate(str(project), *words, folder=folder) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert err == ""
    told: dict[str, Any] = json.loads(out)
    return {**told, "arrays": written(folder / told["paths"]["arrays"]), "folder": folder}


def test_the_json_is_one_object_with_all_that_happened(simulated: dict[str, Any]) -> None:
    assert simulated["status"] == "finished"
    assert (simulated["nodes"], simulated["workers"]) == (NODES, 2)
    assert [ended["number"] for ended in simulated["rounds"]] == list(range(1, ROUNDS + 1))
    assert all(ended["replies"] == NODES // 2 and ended["failures"] == 0 for ended in simulated["rounds"])
    document = json.loads((simulated["folder"] / simulated["paths"]["json"]).read_text())
    assert (document["run_id"], document["status"], document["config"]["nodes"]) == (1, "finished", NODES)


def test_the_arrays_are_those_of_a_federation_in_one_process(
    simulated: dict[str, Any], project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(project))
    from seeded_app.client_app import app as client_app  # type: ignore[import-not-found]
    from seeded_app.server_app import app as server_app  # type: ignore[import-not-found]

    run = Federation(nodes=NODES).run(server_app, client_app, config={"nodes": NODES, "num-rounds": ROUNDS, **OFF})
    assert simulated["arrays"] == bits(run.result.arrays)


@pytest.mark.slow
def test_the_arrays_are_those_of_a_deployment_with_nodes_of_these_names(
    simulated: dict[str, Any], project: Path
) -> None:
    with LocalFederation(nodes=NODES, isolation="fork") as federation:
        for _ in federation.wait_until_online():
            pass
        with SuperLink.connect(federation.url) as link:
            run = link.submit(str(project), config={"nodes": NODES, "num-rounds": ROUNDS})
            assert simulated["arrays"] == bits(run.result(timeout=120).arrays)


@pytest.mark.parametrize("isolation", [pytest.param(name, marks=pytest.mark.slow) for name in ("inline", "fork")])
def test_the_arrays_are_the_same_in_every_isolation(
    simulated: dict[str, Any], project: Path, tmp_path: Path, isolation: str
) -> None:
    words = ("--nodes", str(NODES), "--config", f"nodes={NODES}", "--config", f"num-rounds={ROUNDS}")
    with simulate(str(project), *words, "--isolation", isolation, "-w", "3", folder=tmp_path) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert any(line.startswith(f"round {ROUNDS}/{ROUNDS}") for line in out.splitlines())
    assert written(tmp_path / "simulation-output" / "arrays.npz") == simulated["arrays"]


@pytest.mark.slow
def test_a_serverapp_that_is_killed_while_nodes_train_changes_no_bit(
    simulated: dict[str, Any], project: Path, tmp_path: Path
) -> None:
    dies = tmp_path / "dies"
    words = ("--nodes", str(NODES), "-c", f"nodes={NODES}", "-c", f"num-rounds={ROUNDS}", "-c", f"dies={dies}")
    with simulate(str(project), *words, folder=tmp_path) as process:
        _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert (tmp_path / "dies.done").exists()
    # The step of a node depends on how often its Context was there: nothing was trained twice.
    assert written(tmp_path / "simulation-output" / "arrays.npz") == simulated["arrays"]


def test_an_app_that_fails_ends_it_with_the_reason(tmp_path: Path) -> None:
    failing = write_project(
        tmp_path, server="@app.main()\ndef main(grid, context):\n    raise RuntimeError('no luck')\n"
    )
    with simulate(str(failing), "--nodes", "2", folder=tmp_path) as process:
        _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    (line,) = err.splitlines()
    assert line.startswith("fedq: run 1 failed: ")
    assert "no luck" in line
    assert "RuntimeError: no luck" in (tmp_path / "simulation-output" / "run.log").read_text()


SLEEPS = "import time\n@app.train()\ndef train(message, context):\n    time.sleep(600)\n"


@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 130, marks=pytest.mark.slow),
        (signal.SIGKILL, -9),
    ],
    ids=lambda value: str(value),
)
def test_no_process_is_left_after(number: signal.Signals, code: int, tmp_path: Path, short_folder: Path) -> None:
    sleeping = write_project(tmp_path, client=SLEEPS)
    words = ("--nodes", "5", "--config", "nodes=5", "--keep", str(short_folder))
    with simulate(str(sleeping), *words, folder=tmp_path) as process:
        assert process.stdout is not None
        seen = ""
        while "submitted" not in seen:
            line = process.stdout.readline()
            assert line, f"it ended after {seen!r}: {process.stderr.read() if process.stderr else ''}"
            seen += line
        wait_until(lambda: len(descendants(process.pid)) >= 7, "the services and their workers are there", timeout=30)
        family = [child.pid for child in descendants(process.pid)]
        process.send_signal(number)
        assert process.wait(timeout=30) == code
        wait_until(lambda: all(gone(pid) for pid in family), "every process is gone", timeout=15)


@pytest.mark.slow
@pytest.mark.leaves_keys("rq:finished:*")
def test_workers_join_on_a_shared_server_which_keeps_nothing_but_the_run(
    project: Path, server: RealServer, simulated: dict[str, Any], tmp_path: Path
) -> None:
    with Relay.connect(server.url) as relay:
        nodes.register(relay, "node-99", nodes.NodeInfo())
        worker = Service(
            "worker",
            [
                *(str(SCRIPTS / "fedq"), "worker", "--node", "node", "--isolation", "run", "--grace", "2s"),
                *("--cache-dir", str(tmp_path / "cache")),
            ],
            log=tmp_path / "worker.log",
            environment={"FEDQ_REDIS_URL": server.url},
        )
        gate = tmp_path / "gate"
        config = [f"nodes={NODES}", f"num-rounds={ROUNDS}", f"gate={gate}"]
        words = [word for pair in config for word in ("--config", pair)]
        with simulate(
            *(str(project), "--nodes", str(NODES), *words, "-w", "1", "--redis-url", server.url), folder=tmp_path
        ) as process:
            assert process.stdout is not None
            while "more workers join" not in (line := process.stdout.readline()):
                assert line, process.stderr.read() if process.stderr else ""
            with worker:
                worker.wait_until(lambda: "is ready" in worker.output(), "the worker is ready")
                gate.touch()
                _, err = process.communicate(timeout=120)
                assert process.returncode == 0, err
                assert "12 virtual nodes" in worker.output()
        assert written(tmp_path / "simulation-output" / "arrays.npz") == simulated["arrays"]
        assert nodes.node_names(relay) == ["node-99"]
        assert not list(relay.redis.scan_iter(f"{relay.keys.node('node-0')[:-2]}[0-9]:*"))
        with SuperLink.connect(server.url) as link:
            link.remove(1)
        nodes.forget(relay, "node-99")
        relay.redis.delete(relay.keys.run_counter(), relay.keys.wake(), relay.keys.links())
