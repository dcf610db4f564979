"""Pythons that have Flower and what fedq needs, in one environment each, and fedq run by them.

``FLWR_PYTHON`` names one with ``flwr[simulation]`` 1.42 and fedq's dependencies; else one is made under
``~/.cache/fedq``, as is one with the oldest release that is supported.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
import tomllib
import venv
from collections.abc import Sequence
from pathlib import Path

import pytest

from fedq.relay.serverprogram import find_server
from tests.cli.deployment import NODES, Deployment
from tests.support.documents import ROOT
from tests.support.services import Service
from tests.support.shelves import CACHE

NEWEST = "flwr[simulation]==1.42.*"
OLDEST = "flwr==1.22.*"


def flower_python(requirement: str = NEWEST) -> str:
    """The python of an environment with that release. Skips the test where it cannot be made."""
    if requirement == NEWEST and (given := os.environ.get("FLWR_PYTHON")):
        return given
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [requirement, *project["dependencies"], "scikit-learn>=1.4,<2"]
    digest = hashlib.sha256("\n".join(wanted).encode()).hexdigest()[:8]
    home = CACHE / f"flower-py{sys.version_info.major}{sys.version_info.minor}-{digest}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(f"{home}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / "ready").exists():
            _make(home, wanted)
    return str(home / "bin" / "python")


def _make(home: Path, wanted: Sequence[str]) -> None:
    venv.create(home, with_pip=True, clear=True)
    install = [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*install, *wanted], capture_output=True, text=True, check=False, timeout=1800)
    if done.returncode:
        reason = f"{wanted[0]} cannot be installed beside fedq: {done.stderr.strip()[-800:]}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    (home / "ready").touch()


def fedq_on_path(folder: Path) -> Path:
    """A folder for PYTHONPATH by which another Python imports this clone's fedq."""
    for name in ("apps", "relay", "node", "cli"):
        link = folder / "fedq" / name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(ROOT / name)
    return folder


class FlowerDeployment(Deployment):
    """A federation whose processes are run by another Python, with these folders on its path."""

    def __init__(self, folder: Path, python: str, path: Sequence[Path]) -> None:
        super().__init__(folder)
        self.python = python
        self.environment = {
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_HOME": str(folder / "flwr"),
            # That Python need not bring a server; ours is on this machine.
            "PATH": os.pathsep.join((os.environ.get("PATH", os.defpath), str(find_server().path.parent))),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": os.pathsep.join(map(str, path)),
        }

    def serve(self, name: str, *words: str) -> Service:
        service = Service(
            name,
            [self.python, "-m", "fedq.cli", *words],
            log=self.folder / f"{name}.log",
            environment={**self.environment, "FEDQ_REDIS_URL": self.url, "HOME": str(self.folder)},
        )
        self.services[name] = service.start()
        return service

    def serve_node(self, name: str, number: int) -> Service:
        return self.serve(
            *(name, "supernode", "--name", name, "--grace", "2s", "--isolation", "run"),
            *("--config", f"partition-id={number}", "--config", f"num-partitions={len(NODES)}"),
        )

    def fedq(self, *words: object) -> str:
        done = subprocess.run(
            [self.python, "-m", "fedq.cli", *(str(word) for word in words)],
            env={**os.environ, **self.environment, "FEDQ_REDIS_URL": self.url},
            capture_output=True,
            text=True,
            check=False,
            timeout=180,
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{self.output()}"
        return done.stdout
