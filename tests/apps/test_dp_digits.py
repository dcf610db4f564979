"""The example with differential privacy learns, and says what each round has cost."""

from __future__ import annotations

import importlib
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from fedq.apps.strategy import PrivacyAccountant
from fedq.apps.testing import Federation, FederationRun

PROJECT = Path(__file__).parents[2] / "examples" / "dp_digits"
CONFIG = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["fedq"]["app"]
NODES = 100


@pytest.fixture(scope="module")
def digits() -> Iterator[SimpleNamespace]:
    sys.path.insert(0, str(PROJECT))
    try:
        apps = {name: ref.partition(":") for name, ref in CONFIG["components"].items()}
        yield SimpleNamespace(
            **{name: getattr(importlib.import_module(module), attr) for name, (module, _, attr) in apps.items()}
        )
    finally:
        sys.path.remove(str(PROJECT))
        for name in [name for name in sys.modules if name.partition(".")[0] == "dp_digits"]:
            del sys.modules[name]


def trained(digits: SimpleNamespace, **config: object) -> FederationRun:
    given = {**CONFIG["config"], "min-nodes": NODES, **config}
    return Federation(NODES).run(digits.serverapp, digits.clientapp, given)


@pytest.mark.slow
def test_it_learns_from_a_hundred_nodes_and_tells_the_epsilon_of_each_round(digits: SimpleNamespace) -> None:
    result = trained(digits).result
    rounds = CONFIG["config"]["num-rounds"]
    assert result.evaluate_metrics_serverapp[rounds]["accuracy"] > 0.7

    told = [float(result.train_metrics_clientapp[at]["epsilon"]) for at in range(1, rounds + 1)]  # type: ignore[arg-type]
    assert told == sorted(told)
    accountant = PrivacyAccountant(CONFIG["config"]["delta"])
    accountant.add(CONFIG["config"]["noise-multiplier"], count=rounds)
    assert told[-1] == pytest.approx(accountant.epsilon)


@pytest.mark.slow
def test_more_noise_costs_less(digits: SimpleNamespace) -> None:
    little, much = (
        trained(digits, **{"noise-multiplier": noise, "num-rounds": 1}).result.train_metrics_clientapp[1]["epsilon"]
        for noise in (1.0, 8.0)
    )
    assert much < little  # type: ignore[operator]
