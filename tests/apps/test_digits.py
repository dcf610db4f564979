"""The digits app learns, beats its nodes, and gives the same bits whenever and in whatever order."""

from __future__ import annotations

import importlib
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fedq.apps.testing import Federation, FederationRun, Interrupted

PROJECT = Path(__file__).parents[2] / "examples" / "digits"
CONFIG = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["fedq"]["app"]


@pytest.fixture(scope="module")
def digits() -> Iterator[SimpleNamespace]:
    sys.path.insert(0, str(PROJECT))
    try:
        apps = {name: ref.partition(":") for name, ref in CONFIG["components"].items()}
        loaded = {name: getattr(importlib.import_module(module), attr) for name, (module, _, attr) in apps.items()}
        yield SimpleNamespace(**loaded, task=importlib.import_module("digits.task"))
    finally:
        sys.path.remove(str(PROJECT))
        for name in [name for name in sys.modules if name.partition(".")[0] == "digits"]:
            del sys.modules[name]


def trained(digits: SimpleNamespace, delays: dict[str, float] | None = None, rounds: int = 20) -> FederationRun:
    federation = Federation(6, delays=delays)
    config = {**CONFIG["config"], "min-nodes": 6, "num-rounds": rounds}
    return federation.run(digits.serverapp, digits.clientapp, config)


def bits(run: FederationRun) -> list[bytes]:
    return [array.tobytes() for array in run.result.arrays.to_numpy_ndarrays()]


@pytest.fixture(scope="module")
def run(digits: SimpleNamespace) -> FederationRun:
    return trained(digits)


def test_it_reaches_93_percent_of_the_held_out_digits_within_20_rounds(run: FederationRun) -> None:
    assert CONFIG["config"]["num-rounds"] == 20
    assert run.result.evaluate_metrics_serverapp[20]["accuracy"] >= 0.93  # type: ignore[operator]
    assert run.result.evaluate_metrics_clientapp[20]["accuracy"] >= 0.9  # type: ignore[operator]


def test_it_beats_the_mean_of_models_that_each_node_trains_alone(run: FederationRun) -> None:
    metrics = run.result.evaluate_metrics_serverapp[20]
    assert metrics["alone-accuracy-mean"] < metrics["accuracy"] - 0.1  # type: ignore[operator]
    (event,) = [event for event in run.events if event.kind == "metric"]
    assert event.data == {"name": "alone-accuracy-mean", "value": metrics["alone-accuracy-mean"]}


def test_twice_and_in_another_order_it_gives_the_same_bits(digits: SimpleNamespace) -> None:
    first = trained(digits, rounds=3)
    order = {f"node-{number}": float(5 - number) for number in range(6)}
    for delays in (None, order):
        again = trained(digits, delays, rounds=3)
        assert bits(again) == bits(first)
        assert again.result == first.result


@pytest.mark.parametrize("behind", [2, 3, 4])
def test_interrupted_it_ends_with_the_same_bits(digits: SimpleNamespace, behind: int) -> None:
    config = {**CONFIG["config"], "min-nodes": 6, "num-rounds": 3}
    whole = Federation(6).run(digits.serverapp, digits.clientapp, config)
    run = Federation(6).begin(digits.serverapp, digits.clientapp, config)
    with pytest.raises(Interrupted):
        run.execute(stop_after_checkpoint=behind)
    assert run.execute().result == whole.result
    assert run.executions == whole.executions


def test_the_nodes_have_uneven_parts_that_do_not_overlap_with_each_other_or_the_test(digits: SimpleNamespace) -> None:
    task = digits.task
    parts = [np.concatenate([data[0] for data in task.node_data(k, 6, seed=7)]) for k in range(6)]
    sizes = [len(part) for part in parts]
    assert sum(sizes) + len(task.test_data(7)[0]) == len(task.digits()[0]) == 1797
    assert min(sizes) >= 20
    assert max(sizes) > 1.3 * min(sizes)
    shares = np.array([np.bincount(task.node_data(k, 6, seed=7)[0][1], minlength=10) for k in range(6)])
    assert (shares.max(axis=0) > 2 * np.median(shares, axis=0)).mean() > 0.5, "each digit is mostly on few nodes"


def test_the_data_are_those_of_scikit_learn(digits: SimpleNamespace) -> None:
    from sklearn.datasets import load_digits

    features, labels = digits.task.digits()
    bundled = load_digits()
    np.testing.assert_array_equal(features * 16, bundled.data)
    np.testing.assert_array_equal(labels, bundled.target)


def test_the_app_imports_neither_redis_nor_scikit_learn() -> None:
    import subprocess

    code = (
        "import sys, digits.server_app, digits.client_app; digits.client_app.task.digits();"
        "print([n for n in ('redis', 'rq', 'sklearn', 'scipy', 'fedq.relay') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
