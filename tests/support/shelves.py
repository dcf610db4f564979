"""Heavy packages that only some tests need, installed on demand into folders of their own.

They are no part of the test environment, which would take minutes to make. A shelf lies under ``~/.cache/fedq`` and is
made once; it comes last on the path, so that what the environment has is not replaced.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

CACHE = Path.home() / ".cache" / "fedq"

SHELVES: dict[str, Sequence[str]] = {
    # PyTorch's versions for Linux on PyPI bring CUDA, gigabytes of it; where pip finds one for the CPU it takes that.
    "torch": ("torch==2.13.*",),
    "xgboost": ("xgboost-cpu==3.*",),
    "mlflow": ("mlflow-skinny==3.*", "sqlalchemy>=2,<3", "alembic>=1.13,<2"),
    "wandb": ("wandb==0.31.*",),
}


def shelf(name: str) -> Path:
    """The folder of packages of that name, made if it is not there. Skips the test where they cannot be had."""
    requirements = SHELVES[name]
    digest = hashlib.sha256("\n".join(requirements).encode()).hexdigest()[:8]
    home = CACHE / f"{name}-py{sys.version_info.major}{sys.version_info.minor}-{digest}"
    CACHE.mkdir(parents=True, exist_ok=True)
    # Several processes of one session, or of several, may want it at the same time.
    with open(f"{home}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / "ready").exists():
            _install(home, requirements)
    return home


def _install(home: Path, requirements: Sequence[str]) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--upgrade"]
    done = subprocess.run(
        [*pip, "--target", str(home), *requirements], capture_output=True, text=True, check=False, timeout=1800
    )
    if done.returncode:
        reason = f"{', '.join(requirements)} cannot be installed: {done.stderr.strip()[-500:]}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    (home / "ready").touch()


def path_with(*shelves: Path) -> str:
    """PYTHONPATH for another process, with these shelves behind what it has."""
    return os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), *map(str, shelves)])


def importable(name: str) -> None:
    """Make the packages of a shelf importable in this process, behind what the environment has, until it ends."""
    place = str(shelf(name))
    if place not in sys.path:
        sys.path.append(place)
        importlib.invalidate_caches()
