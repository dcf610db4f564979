"""An app written for Flower is ported by changing its import lines, and computes the same.

The Flower version runs in Flower's own simulation, in an environment of its own: ``FLWR_PYTHON`` names a Python that
has ``flwr[simulation]`` 1.42; else one is made under ``~/.cache/fedq``.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from fedq.apps.testing import Federation
from tests.support import wait_until
from tests.support.flower import flower_python as python_with_flower

EXAMPLES = Path(__file__).parents[2] / "examples"
ORIGINAL, PORT = EXAMPLES / "numpy_quickstart_flower", EXAMPLES / "numpy_quickstart"
NODES = 4

IMPORTS = (
    ("from flwr.serverapp.strategy import", "from fedq.apps.strategy import"),
    ("from flwr.serverapp import", "from fedq.apps import"),
    ("from flwr.clientapp import", "from fedq.apps import"),
    ("from flwr.app import", "from fedq.apps import"),
)
PROJECT = (
    ('"flwr[simulation]>=1.42"', '"fedq"'),
    ('[tool.flwr.app]\npublisher = "example"\n\n', ""),
    ("[tool.flwr.app", "[tool.fedq.app"),
)

DRIVER = """
import json, sys
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation
from quickstart.client_app import app as client_app
from quickstart.server_app import app as server_app

config = json.loads(sys.argv[1])  # run_simulation itself gives an empty run config

class Client(ClientApp):
    def __call__(self, message: Message, context: Context) -> Message:
        context.run_config.update(config)
        try:
            return client_app(message, context)
        finally:
            context.run_config.clear()  # Flower checks that nobody changed it

server = ServerApp()

@server.main()
def main(grid: Grid, context: Context) -> None:
    context.run_config.update(config)
    server_app(grid, context)

run_simulation(server, Client(), num_supernodes=int(sys.argv[2]),
               backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}})
"""


def files(project: Path) -> dict[str, str]:
    return {
        str(path.relative_to(project)): path.read_text()
        for path in sorted(project.rglob("*"))
        if path.suffix in (".py", ".toml")
    }


def config() -> dict[str, object]:
    loaded: dict[str, object] = tomllib.loads((PORT / "pyproject.toml").read_text())["tool"]["fedq"]["app"]["config"]
    return loaded


def test_the_port_differs_from_the_original_in_its_import_lines_and_its_project_file_only() -> None:
    ported = {}
    for name, text in files(ORIGINAL).items():
        for old, new in PROJECT if name == "pyproject.toml" else IMPORTS:
            text = text.replace(old, new)
        ported[name] = text
    assert ported == files(PORT)
    assert all("flwr" not in text for text in files(PORT).values())


@pytest.fixture
def quickstart() -> Iterator[tuple[object, object]]:
    sys.path.insert(0, str(PORT))
    try:
        yield (
            importlib.import_module("quickstart.server_app").app,
            importlib.import_module("quickstart.client_app").app,
        )
    finally:
        sys.path.remove(str(PORT))
        for name in [name for name in sys.modules if name.partition(".")[0] == "quickstart"]:
            del sys.modules[name]


def final_model(quickstart: tuple[object, object], path: Path) -> list[NDArray[np.float64]]:
    server_app, client_app = quickstart
    Federation(NODES).run(server_app, client_app, {**config(), "final-model": str(path)})  # type: ignore[arg-type]
    with np.load(path) as arrays:
        return list(arrays.values())


def test_the_port_finds_the_plane(quickstart: tuple[object, object], tmp_path: Path) -> None:
    weights, bias = final_model(quickstart, tmp_path / "model.npz")
    np.testing.assert_allclose(weights, [1.5, -2.0, 0.5, 3.0], atol=0.05)
    np.testing.assert_allclose(bias, [-0.7], atol=0.05)


@pytest.fixture(scope="module")
def flower_python() -> str:
    return python_with_flower()


def simulating(place: str) -> list[int]:
    """Processes of the simulation in ``place``; some of Ray's outlive it for a moment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("RAY_TMPDIR") == place:
                found.append(process.pid)
    return found


@pytest.mark.peer
def test_original_and_port_end_with_the_same_model(
    flower_python: str, quickstart: tuple[object, object], tmp_path: Path
) -> None:
    # Ray puts sockets there, whose paths must be short.
    place = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    try:
        path = tmp_path / "flower.npz"
        arguments = [json.dumps({**config(), "final-model": str(path)}), str(NODES)]
        done = subprocess.run(
            [flower_python, "-c", DRIVER, *arguments],
            cwd=ORIGINAL,
            env={
                **os.environ,
                "FLWR_TELEMETRY_ENABLED": "0",
                "FLWR_HOME": place,
                "PYTHONDONTWRITEBYTECODE": "1",
                "PYTHONPATH": str(ORIGINAL),
                "RAY_TMPDIR": place,
                "RAY_USAGE_STATS_ENABLED": "0",
            },
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        with np.load(path) as arrays:
            theirs = list(arrays.values())
    finally:
        wait_until(lambda: not simulating(place), "Ray's processes have ended", timeout=60)
        shutil.rmtree(place, ignore_errors=True)

    ours = final_model(quickstart, tmp_path / "fedq.npz")
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == other.dtype
        np.testing.assert_allclose(mine, other, rtol=1e-6)
