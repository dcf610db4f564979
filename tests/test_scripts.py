"""The scripts of a clone: they parse, say what is missing, and install only when something changed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BASH = [*sorted(path for path in (ROOT / "scripts").iterdir() if path.is_file()), ROOT / ".ci" / "run"]

# An environment's python that records each installation instead of doing it.
FAKE_PYTHON = """#!/bin/sh
case "$*" in
    *"pip install"*) echo "$*" >> "$RECORD" ;;
    *) exec "$REAL" "$@" ;;
esac
"""


def bash(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "path", [path for path in BASH if b"bash" in path.read_bytes()[:20]], ids=lambda path: path.name
)
def test_a_script_parses_can_be_executed_and_stops_at_the_first_error(path: Path) -> None:
    assert subprocess.run(["bash", "-n", path], check=False).returncode == 0
    assert os.access(path, os.X_OK), f"{path} is not executable"
    assert "set -euo pipefail" in path.read_text()


def test_without_a_python_that_is_new_enough_the_script_says_what_is_needed() -> None:
    done = bash(". scripts/_env.sh; find_python", PYTHON="/bin/false")
    assert done.returncode == 1
    assert "needs Python 3.11 or newer" in done.stderr
    assert done.stdout == ""


def test_an_environment_is_installed_once_and_again_when_what_is_declared_changes(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    (clone / "scripts").mkdir(parents=True)
    for name in ("pyproject.toml", "setup.py", "scripts/_env.sh"):
        (clone / name).write_bytes((ROOT / name).read_bytes())
    python = clone / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
    record = tmp_path / "record"
    record.touch()

    def make(extras: str = "test,embedded") -> list[str]:
        done = bash(f". {clone}/scripts/_env.sh; make_env {extras}", RECORD=str(record), REAL=sys.executable)
        assert done.returncode == 0, done.stderr
        assert done.stdout == "", "stdout belongs to the script that asked"
        return record.read_text().splitlines()

    assert len(make()) == 1
    assert make()[0].endswith(f"--editable {clone}[test,embedded]")
    assert len(make()) == 1, "nothing changed"
    assert len(make("demo")) == 2, "other extras"
    (clone / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes() + b"\n# changed\n")
    assert len(make()) == 3, "another declaration"
    assert (clone / ".venv" / "typed" / "fedq" / "apps").is_symlink()
