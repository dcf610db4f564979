"""An arrow points down only: cli, node, relay, apps; and importing a layer costs no more than it must."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ("apps", "relay", "node", "cli")


def test_the_import_contracts_hold() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.mark.parametrize(
    ("layer", "foreign"),
    [
        ("apps", {"redis", "rq", "click", "rich", "fedq.relay", "fedq.node", "fedq.cli"}),
        ("relay", {"click", "rich", "fedq.node", "fedq.cli"}),
        ("node", {"rich", "fedq.cli"}),
    ],
)
def test_importing_a_layer_loads_nothing_above_it(layer: str, foreign: set[str]) -> None:
    assert not (loaded_by(f"fedq.{layer}") & foreign)


@pytest.mark.parametrize("layer", LAYERS)
def test_importing_a_layer_loads_no_heavy_package(layer: str) -> None:
    heavy = {"sklearn", "scipy", "pandas", "matplotlib", "torch", "jax", "tensorflow", "pytest", "hypothesis"}
    assert not (loaded_by(f"fedq.{layer}") & heavy)


def test_the_layers_are_installed_under_their_own_names_only() -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-c", "import apps"], cwd="/", capture_output=True, text=True, check=False
    )
    assert "No module named 'apps'" in done.stderr


def loaded_by(module: str) -> set[str]:
    """The modules that a fresh interpreter holds after importing ``module``."""
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())
