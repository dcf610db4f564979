"""The example of secure aggregation learns, and with a node that drops out it learns too."""

from __future__ import annotations

import importlib
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from fedq.apps.testing import Federation

PROJECT = Path(__file__).parents[2] / "examples" / "secagg"
CONFIG = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["fedq"]["app"]


@pytest.fixture(scope="module")
def example() -> Iterator[SimpleNamespace]:
    sys.path.insert(0, str(PROJECT))
    try:
        apps = {name: ref.partition(":") for name, ref in CONFIG["components"].items()}
        yield SimpleNamespace(**{k: getattr(importlib.import_module(m), attr) for k, (m, _, attr) in apps.items()})
    finally:
        sys.path.remove(str(PROJECT))
        for name in [name for name in sys.modules if name.partition(".")[0] == "secagg"]:
            del sys.modules[name]


@pytest.mark.parametrize("lost", [(), ("node-3",)], ids=["all nodes", "one drops out"])
def test_it_tells_95_percent_of_the_held_out_patients_right(example: SimpleNamespace, lost: tuple[str, ...]) -> None:
    federation = Federation(5)
    for name in lost:
        federation.fail(name, MemoryError("lost"))
    run = federation.run(example.serverapp, example.clientapp, CONFIG["config"])
    assert run.result.evaluate_metrics_serverapp[5]["accuracy"] >= 0.95  # type: ignore[operator]
    assert run.result.train_metrics_clientapp[5]["secagg-nodes"] == 5 - len(lost)
