"""Flower's strategies, given the same replies, make the same models, and are constructed in the same way."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedq.apps import strategy as strategies
from fedq.apps.mod import secaggplus_mod
from tests.apps.strategies.cases import (
    ADAPTIVE,
    ADAPTIVE_AT_SERVER,
    MOVING,
    NODES,
    PEERS,
    Case,
    replies,
    without_numbers,
)
from tests.apps.strategies.scripted import Arrays, Rounds, trained

pytestmark = pytest.mark.peer

TOLERANCE = {"float32": 1e-6, "float64": 1e-12}
DTYPES = tuple(TOLERANCE)
OURS = ("Asynchronous", "CompressedBroadcast", "FedAsync", "FedBuff", "SecAggPlus")
"""Flower has no strategies of these names."""
NAMES = [
    name
    for name in strategies.__all__
    if isinstance(cls := getattr(strategies, name), type) and issubclass(cls, strategies.Strategy)
]
CLASSES = [name for name in NAMES if name not in ("Strategy", *OURS)]
AVERAGING: dict[str, tuple[Any, tuple[Any, ...], float]] = {
    # Where FedBuff's buffer holds a fresh reply of every node it is FedAvg. 2 * 100 / 2**32 is a step of the integers.
    "FedBuff": (lambda: strategies.FedBuff(NODES, by_examples=True), (), 1e-12),
    "CompressedBroadcast": (lambda: strategies.CompressedBroadcast(strategies.FedAvg(), zstd_level=3), (), 1e-12),
    "SecAggPlus": (
        lambda: strategies.SecAggPlus(strategies.FedAvg(), clipping_range=100.0),
        (secaggplus_mod,),
        200.0 / 2**32,
    ),
}
"""Strategies that Flower has not and that give, on these replies, what FedAvg gives: mods, and how far off at most."""


def one_round(dtype: str) -> tuple[Arrays, Rounds]:
    initial, rounds = without_numbers(dtype)
    return initial, rounds[:1]


MOVES = Case(
    ADAPTIVE_AT_SERVER,
    {**ADAPTIVE, "clip_norm_lr": 0.4},
    wraps=True,
    attributes=MOVING,
    rounds=one_round,
    label="moves",
)
NOISY = Case(ADAPTIVE_AT_SERVER, {**ADAPTIVE, "noise_multiplier": 0.3}, wraps=True, attributes=MOVING, label="noisy")


@pytest.fixture(scope="module")
def theirs(flower_python: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """What Flower makes of all cases: JSON, and arrays. One process, since importing it takes seconds."""
    folder = tmp_path_factory.mktemp("flower")
    arrays: dict[str, NDArray[Any]] = {}
    cases = []
    for case in (*PEERS, MOVES, NOISY):
        for dtype in DTYPES:
            initial, rounds = case.rounds(dtype)
            key = f"{case}-{dtype}"
            arrays |= {f"{key}/initial/{name}": array for name, array in initial.items()}
            for number, several in enumerate(rounds, start=1):
                for node, reply in enumerate(several):
                    arrays |= {f"{key}/{number}/{node}/{name}": array for name, array in reply.arrays.items()}
            metrics = [[{"num-examples": reply.examples, **reply.metrics} for reply in several] for several in rounds]
            cases.append(
                {
                    "key": key,
                    "name": case.name,
                    "wraps": case.wraps,
                    "arguments": case.arguments,
                    "attributes": case.attributes,
                    "mods": [mod.__name__ for mod in case.mods],
                    "rounds": metrics,
                }
            )
    (folder / "cases.json").write_text(json.dumps({"cases": cases, "signatures": CLASSES}))
    np.savez(folder / "arrays.npz", **arrays)  # type: ignore[arg-type]
    paths = [str(folder / name) for name in ("cases.json", "arrays.npz", "out.json", "out.npz")]
    done = subprocess.run(
        [flower_python, str(Path(__file__).with_name("flower_side.py")), *paths],
        env={**os.environ, "FLWR_TELEMETRY_ENABLED": "0", "FLWR_HOME": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(folder / "out.npz") as found:
        return json.loads((folder / "out.json").read_text()), dict(found)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", PEERS, ids=str)
def test_the_models_and_metrics_are_those_of_flower(
    case: Case, dtype: str, theirs: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    told, made = theirs
    initial, rounds = case.rounds(dtype)
    strategy = case.make()
    found = trained(strategy, initial, rounds, mods=case.mods)
    key = f"{case}-{dtype}"
    # Differences of values of this size are taken, whose last bits depend on the precision of the arithmetic.
    scale = max(
        float(np.max(np.abs(array))) for several in rounds for reply in several for array in reply.arrays.values()
    )
    for number, model in enumerate(found.models, start=1):
        for name, array in model.items():
            other = made[f"{key}/{number}/{name}"]
            assert array.shape == other.shape
            np.testing.assert_allclose(array, other, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * scale)
        metrics = found.result.train_metrics_clientapp.get(number)
        expected = told["metrics"][key][number - 1]
        assert (metrics is None) == (expected is None)
        if metrics is not None:
            expected.pop("norm_bit", None)  # which is for the strategy, and not private as a metric
            assert dict(metrics) == pytest.approx(expected, rel=1e-6)
    for name in case.attributes:
        assert getattr(strategy, name) == pytest.approx(told["attributes"][key][name], rel=1e-6)


def test_the_adaptive_norm_moves_by_the_same_factor_in_the_opposite_direction(
    theirs: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    # Flower's moves away from the quantile, see AdaptiveClipping. Should that change, this test says so.
    strategy: Any = MOVES.make()
    trained(strategy, *one_round("float64"))
    other = theirs[0]["attributes"]["moves-float64"]["clipping_norm"]
    assert strategy.clipping_norm != pytest.approx(3.0)
    assert strategy.clipping_norm * other == pytest.approx(3.0**2, rel=1e-9)


def test_the_noise_is_made_for_the_same_multipliers(theirs: tuple[dict[str, Any], dict[str, Any]]) -> None:
    strategy: Any = NOISY.make()
    other = theirs[0]["attributes"]["noisy-float64"]
    assert strategy.noise_multiplier == pytest.approx(other["noise_multiplier"], rel=1e-12)
    assert strategy.clipped_count_stddev == other["clipped_count_stddev"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", AVERAGING)
def test_the_average_is_that_of_flowers_fedavg(
    name: str, dtype: str, theirs: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    make, mods, within = AVERAGING[name]
    initial, rounds = replies(dtype)
    found = trained(make(), initial, rounds[:1], mods=mods, together=True)
    for array_name, array in found.models[0].items():
        other = theirs[1][f"FedAvg-{dtype}/1/{array_name}"]
        assert (array.dtype, array.shape) == (other.dtype, other.shape)
        np.testing.assert_allclose(array, other, rtol=TOLERANCE[dtype], atol=max(within, TOLERANCE[dtype]))


def test_flower_has_no_class_for_what_is_not_compared_with_one(
    theirs: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    assert not {name.lower() for name in theirs[0]["names"]} & {name.lower() for name in OURS}


@pytest.mark.parametrize("name", CLASSES)
def test_the_arguments_are_those_of_flower_and_more_by_name(
    name: str, theirs: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    parameters = inspect.signature(getattr(strategies, name).__init__).parameters.values()
    ours = [[p.name, p.kind.name, None if p.default is p.empty else repr(p.default)] for p in parameters]
    flower = [parameter for parameter in theirs[0]["signatures"][name] if parameter[0] != "accountant"]
    assert ours[: len(flower)] == flower
    assert all(kind in ("KEYWORD_ONLY", "VAR_KEYWORD") for _, kind, _ in ours[len(flower) :])
