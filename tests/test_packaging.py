"""The wheel holds every package and every file that the code reads, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOP = ("apps", "relay", "node", "cli")
NOT_SHIPPED = {"__pycache__", ".mypy_cache", ".ruff_cache"}


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel, built from a copy of what a clone holds."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "examples", *TOP):
        subprocess.run(["cp", "-R", str(ROOT / name), str(source / name)], check=True)
    target = tmp_path_factory.mktemp("wheel")
    # The tests' environment has setuptools; an isolated build would fetch it again.
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "-q",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            str(target),
            str(source),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = target.glob("*.whl")
    return built


def source_files() -> set[str]:
    """Each file of the top folders, and of the app that ``fedq demo`` trains, as it should be named in the wheel."""
    return {
        f"fedq/{path.relative_to(ROOT)}"
        for top in (*TOP, "examples/digits")
        for path in (ROOT / top).rglob("*")
        if path.is_file() and not NOT_SHIPPED & set(path.parts) and path.suffix not in {".pyc", ".part"}
    }


def test_the_wheel_holds_exactly_the_files_of_the_top_folders_and_the_demo(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == source_files()


def test_every_folder_with_code_is_a_package() -> None:
    without = [
        str(folder.relative_to(ROOT))
        for top in TOP
        for folder in {path.parent for path in (ROOT / top).rglob("*.py") if not NOT_SHIPPED & set(path.parts)}
        if "templates" not in folder.parts and not (folder / "__init__.py").exists()
    ]
    assert not without, f"no __init__.py in {', '.join(without)}: the code there would not be installed"


def test_each_layer_says_that_it_is_typed() -> None:
    for top in TOP:
        assert (ROOT / top / "py.typed").exists()


def test_nothing_lands_beside_the_namespace_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
        assert "fedq/__init__.py" not in archive.namelist(), "fedq is a namespace package"
    assert tops == {"fedq", f"fedq-{metadata.version('fedq')}.dist-info"}


def test_the_wheel_declares_its_command_its_licence_and_its_extras(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        info = f"fedq-{metadata.version('fedq')}.dist-info"
        declared = archive.read(f"{info}/METADATA").decode()
        assert "fedq = fedq.cli:main" in archive.read(f"{info}/entry_points.txt").decode()
        assert "Apache License" in archive.read(f"{info}/licenses/LICENSE").decode()
    assert "License-Expression: Apache-2.0" in declared
    for extra in ("embedded", "dashboard", "demo", "sign", "dtypes"):
        assert f"Provides-Extra: {extra}" in declared


def test_every_dependency_has_a_lower_and_an_upper_bound() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for dependency in project["dependencies"]:
        assert ">=" in dependency, dependency
        assert "<" in dependency, dependency


def test_the_installed_version_is_the_one_that_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert metadata.version("fedq") == project["version"]
