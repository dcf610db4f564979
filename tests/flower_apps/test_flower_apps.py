"""Apps written for Flower run on fedq as they are, and end with the same parameters as in Flower's own simulation.

The federations here are run by Pythons that have ``flwr``, see ``tests/support/flower.py``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fedq.apps.history import History
from tests.apps.test_flower_port import simulating
from tests.cli.deployment import NODES
from tests.support import wait_until
from tests.support.flower import OLDEST, FlowerDeployment, fedq_on_path, flower_python
from tests.support.shelves import shelf

pytestmark = pytest.mark.peer

HERE = Path(__file__).parent
APPS = ("numpy", "sklearn", "torch", "xgboost", "by_hand", "private", "legacy", "secagg")


def config_of(name: str, output: Path) -> dict[str, object]:
    config = tomllib.loads((HERE / name / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    return {**config, "output": str(output)}


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What Flower's simulation makes of all apps: a folder of ``NAME.npz``."""
    folder = tmp_path_factory.mktemp("simulated")
    place = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    configs = {name: config_of(name, folder / f"{name}.npz") for name in APPS}
    path = [*(HERE / name for name in APPS), shelf("xgboost"), shelf("torch")]
    try:
        done = subprocess.run(
            [flower_python(), str(HERE / "simulate.py"), str(len(NODES)), json.dumps(configs)],
            env={
                **os.environ,
                "FLWR_TELEMETRY_ENABLED": "0",
                "FLWR_HOME": place,
                "PYTHONDONTWRITEBYTECODE": "1",
                "PYTHONPATH": os.pathsep.join(map(str, path)),
                "RAY_TMPDIR": place,
                "RAY_USAGE_STATS_ENABLED": "0",
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=900,
        )
        assert done.returncode == 0, done.stderr[-5000:]
    finally:
        wait_until(lambda: not simulating(place), "Ray's processes have ended", timeout=60)
        shutil.rmtree(place, ignore_errors=True)
    return folder


def federation_of(folder: Path, python: str, *shelves: Path) -> Iterator[FlowerDeployment]:
    running = FlowerDeployment(folder, python, [fedq_on_path(folder / "path"), *shelves])
    try:
        running.start()
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlowerDeployment]:
    yield from federation_of(tmp_path_factory.mktemp("federation"), flower_python(), shelf("xgboost"), shelf("torch"))


@pytest.fixture(scope="module")
def oldest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlowerDeployment]:
    python = flower_python(OLDEST)
    yield from federation_of(tmp_path_factory.mktemp("oldest"), python, shelf("xgboost"), shelf("torch"))


def run(federation: FlowerDeployment, name: str, output: Path, *words: str) -> int:
    """Run an app to its end; the number of the run."""
    told = federation.fedq(
        "run", HERE / name, "--config", f"output={output}", "--follow", "--timeout", "120s", "--json", *words
    )
    return int(json.loads(told)["run_id"])


def same(output: Path, expected: Path) -> None:
    with np.load(output) as mine, np.load(expected) as theirs:
        assert mine.files == theirs.files
        for key in mine.files:
            assert mine[key].dtype == theirs[key].dtype
            np.testing.assert_allclose(mine[key], theirs[key], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", APPS)
def test_the_final_parameters_are_those_of_flowers_simulation(
    name: str, simulated: Path, federation: FlowerDeployment, tmp_path: Path
) -> None:
    run(federation, name, tmp_path / "out.npz")
    same(tmp_path / "out.npz", simulated / f"{name}.npz")


@pytest.mark.parametrize("name", APPS)
def test_the_oldest_release_gives_the_same(
    name: str, simulated: Path, oldest: FlowerDeployment, tmp_path: Path
) -> None:
    run(oldest, name, tmp_path / "out.npz")
    same(tmp_path / "out.npz", simulated / f"{name}.npz")


def pulled(federation: FlowerDeployment, number: int, folder: Path) -> History:
    """What ``fedq pull`` has of a run; the arrays lie beside it."""
    federation.fedq("pull", number, "--out", folder)
    return History.from_json((folder / "history.json").read_text(encoding="utf-8"))


def test_rounds_metrics_and_arrays_of_a_strategy_are_those_of_the_run(
    federation: FlowerDeployment, tmp_path: Path
) -> None:
    number = run(federation, "numpy", tmp_path / "out.npz", "--config", "num-server-rounds=3")
    rounds = pulled(federation, number, tmp_path / "pulled").trained
    assert [(ended.number, ended.replies, ended.failures) for ended in rounds] == [(n, 6, 0) for n in (1, 2, 3)]
    assert all(part["loss"] > 0 for ended in rounds for part in (ended.train, ended.evaluate))  # type: ignore[operator]
    with np.load(tmp_path / "pulled" / "arrays.npz") as arrays, np.load(tmp_path / "out.npz") as saved:
        np.testing.assert_array_equal(next(iter(arrays.values())), next(iter(saved.values())))
    log = federation.fedq("log", number)
    for whose in ("the", "the server's"):
        assert f"{whose} lifespan begins" in log
        assert f"{whose} lifespan ends" in log
    assert "[ROUND 3/3]" in log


def test_the_state_of_a_node_is_there_at_its_next_message(federation: FlowerDeployment, tmp_path: Path) -> None:
    number = run(federation, "numpy", tmp_path / "out.npz", "--config", "num-server-rounds=3")
    rounds = pulled(federation, number, tmp_path / "pulled").trained
    assert [ended.train["times"] for ended in rounds] == [1, 2, 3]


def test_virtual_nodes_give_what_a_deployment_gives(federation: FlowerDeployment, tmp_path: Path) -> None:
    run(federation, "numpy", tmp_path / "deployed.npz")
    federation.fedq(
        *("simulate", HERE / "numpy", "--nodes", len(NODES), "--config", f"output={tmp_path / 'out.npz'}"),
        *("--timeout", "120s", "--out", tmp_path / "results"),
    )
    same(tmp_path / "out.npz", tmp_path / "deployed.npz")


def test_a_serverapp_that_is_killed_does_the_same_again_and_trains_nothing_twice(
    federation: FlowerDeployment, simulated: Path, tmp_path: Path
) -> None:
    number = run(federation, "numpy", tmp_path / "out.npz", "--config", "dies-in-round=2", "--durability", "replay")
    assert (tmp_path / "out.npz.dead").exists()
    same(tmp_path / "out.npz", simulated / "numpy.npz")
    # Two rounds, each with a message for training and one for evaluation to each node.
    assert federation.fedq("log", number).count("the lifespan begins") == 2 * 2 * len(NODES)
