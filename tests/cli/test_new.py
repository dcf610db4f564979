"""``fedq new`` writes a project that runs as it is."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.cli.conftest import Call

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_project_passes_its_own_test(call: Call, tmp_path: Path) -> None:
    call("new", "my-app").succeeds()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"],
        cwd=tmp_path / "my-app",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_the_project_is_formatted_and_free_of_lint(call: Call, tmp_path: Path) -> None:
    call("new", "my-app").succeeds()
    for words in (["check", "--select", "E,F,UP,B"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *words, "--isolated", "--line-length", "120", "--no-cache", "my-app"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_project_names_its_apps_and_config(call: Call) -> None:
    said = call("new", "Tumour-Size", "--json").succeeds().json
    assert said["directory"] == "Tumour-Size"
    assert said["package"] == "tumour_size"
    for name in said["files"]:
        assert (Path("Tumour-Size") / name).is_file()
    table = tomllib.loads(Path("Tumour-Size/pyproject.toml").read_text())
    assert table["tool"]["fedq"]["app"]["components"]["serverapp"] == "tumour_size.server_app:app"
    assert table["tool"]["fedq"]["app"]["config"]["num-rounds"] == 5
    assert not [path for path in Path("Tumour-Size").rglob("*") if path.is_file() and "$" in path.read_text()]


def test_it_writes_into_an_empty_directory_that_is_there(call: Call, tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    call("new", "my-app", "--directory", "place").succeeds()
    assert (tmp_path / "place" / "my_app" / "server_app.py").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["place"]


def test_it_writes_over_nothing(call: Call) -> None:
    call("new", "my-app").succeeds()
    Path("my-app/pyproject.toml").write_text("mine")
    call("new", "my-app").fails(1, "my-app is there already", "--directory")
    assert Path("my-app/pyproject.toml").read_text() == "mine"


@pytest.mark.parametrize("name", ["9lives", "my app", "../up", "a/b", "class", "-x-", "my--app", "fedq", "tests", "é"])
def test_a_name_that_no_package_can_have_is_refused(call: Call, name: str) -> None:
    call("new", "--", name).fails(1, repr(name))
    assert not list(Path.cwd().iterdir())
