"""Every strategy with arguments that let it show what it does, for the tests that hold for all."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fedq.apps import strategy as strategies
from fedq.apps.mod import adaptiveclipping_mod, fixedclipping_mod, secaggplus_mod
from fedq.apps.strategy import FedAvg, Strategy
from tests.apps.strategies.scripted import Arrays, Reply, Rounds

NODES = 7


@dataclass(frozen=True)
class Case:
    """A strategy by the name of its class, here and in Flower, and its arguments.

    `ours` are arguments that Flower does not have, `wraps` says that it is a wrapper around FedAvg.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    ours: Mapping[str, Any] = field(default_factory=dict)
    wraps: bool = False
    rounds: Callable[[str], tuple[Arrays, Rounds]] = field(default=lambda dtype: replies(dtype))
    mods: tuple[Callable[..., Any], ...] = ()
    attributes: tuple[str, ...] = ()  # which are compared with Flower's after the last round
    samples: bool = True  # whether a share of the nodes can be asked

    def make(self, **more: Any) -> Strategy:
        """A new object of our class."""
        cls = getattr(strategies, self.name)
        arguments = {**self.arguments, **self.ours}
        made: Strategy = cls(FedAvg(**more), **arguments) if self.wraps else cls(**arguments, **more)
        return made

    label: str = ""

    def __str__(self) -> str:
        return self.label or self.name


def replies(dtype: str, rounds: int = 3, nodes: int = NODES) -> tuple[Arrays, Rounds]:
    """Models of several shapes, the replies' near to each other but for one node far off."""
    rng = np.random.default_rng(12)

    def model(scale: float) -> dict[str, Any]:
        shapes = {"weight": (3, 4), "bias": (3,), "scale": ()}
        return {name: np.asarray(rng.standard_normal(shape) * scale).astype(dtype) for name, shape in shapes.items()}

    def reply(node: int) -> Reply:
        loss = float(rng.uniform(0.5, 2.0))
        return Reply(model(9.0 if node == 2 else 1.0), 3 + 2 * node, {"train_loss": loss, "accuracy": 1.0 / (1 + node)})

    return model(1.0), [[reply(node) for node in range(nodes)] for _ in range(rounds)]


def without_numbers(dtype: str) -> tuple[Arrays, Rounds]:
    """Those replies without the array that is a single number, which Flower does not clip."""
    initial, rounds = replies(dtype)

    def vectors(arrays: Arrays) -> Arrays:
        return {name: array for name, array in arrays.items() if array.ndim}

    return vectors(initial), [[replace(one, arrays=vectors(one.arrays)) for one in several] for several in rounds]


def tree_model(*leaves: float, features: int = 3, classes: Sequence[int] | None = None) -> Arrays:
    """An XGBoost model in JSON with one tree of one leaf per value; each class of a round has its tree."""
    count, width = len(leaves), len(classes or [0])
    trees = [
        {"base_weights": [leaf], "id": place, "left_children": [-1], "tree_param": {"num_nodes": "1"}}
        for place, leaf in enumerate(leaves)
    ]
    model = {
        "gbtree_model_param": {"num_parallel_tree": "1", "num_trees": str(count)},
        "iteration_indptr": list(range(0, count + 1, width)),
        "tree_info": list(classes or [0]) * (count // width),
        "trees": trees,
    }
    learner = {
        "gradient_booster": {"model": model, "name": "gbtree"},
        "learner_model_param": {"num_feature": str(features)},
    }
    return {"0": np.frombuffer(json.dumps({"learner": learner, "version": [3, 0, 0]}).encode(), dtype=np.uint8)}


def trees(dtype: str) -> tuple[Arrays, Rounds]:
    """Models of one new tree per node and round, on top of no model. The dtype is always uint8."""
    rounds = [[Reply(tree_model(r + node / 10), 1 + node) for node in range(NODES)] for r in range(3)]
    return {"0": np.zeros(0, np.uint8)}, rounds


FIXED_AT_SERVER = "DifferentialPrivacyServerSideFixedClipping"
FIXED_AT_NODES = "DifferentialPrivacyClientSideFixedClipping"
ADAPTIVE_AT_SERVER = "DifferentialPrivacyServerSideAdaptiveClipping"
ADAPTIVE_AT_NODES = "DifferentialPrivacyClientSideAdaptiveClipping"
ADAPTIVE = {"noise_multiplier": 0.0, "num_sampled_clients": NODES, "initial_clipping_norm": 3.0}
MOVING = ("clipping_norm", "noise_multiplier", "clipped_count_stddev")

CASES = [
    Case("FedAvg"),
    Case("FedProx", {"proximal_mu": 0.1}),
    Case("FedAvgM", {"server_learning_rate": 0.7, "server_momentum": 0.9}),
    Case("FedAdagrad", {"eta": 0.3, "tau": 0.01}),
    Case("FedAdam", {"eta": 0.3, "beta_1": 0.8, "beta_2": 0.95, "tau": 0.01}),
    Case("FedYogi", {"eta": 0.3, "beta_1": 0.8, "beta_2": 0.95, "tau": 0.01}),
    Case("FedMedian"),
    Case("FedTrimmedAvg", {"beta": 0.2}),
    Case("Krum", {"num_malicious_nodes": 1}),
    Case("MultiKrum", {"num_malicious_nodes": 1, "num_nodes_to_select": 4}),
    Case("Bulyan", {"num_malicious_nodes": 1}, samples=False),
    Case("Bulyan", {"num_malicious_nodes": 1}, {"repeated_selection": True}, label="Bulyan-repeated", samples=False),
    Case("FedMedian", ours={"memory_limit": 0}, label="FedMedian-on-disk"),
    Case("FedXgbBagging", rounds=trees),
    Case("FedXgbCyclic", samples=False),
    Case("QFedAvg", {"client_learning_rate": 0.1, "q": 0.5}),
    Case(
        FIXED_AT_SERVER,
        {"noise_multiplier": 0.0, "clipping_norm": 2.0, "num_sampled_clients": NODES},
        wraps=True,
        rounds=without_numbers,
    ),
    Case(
        FIXED_AT_NODES,
        {"noise_multiplier": 0.0, "clipping_norm": 2.0, "num_sampled_clients": NODES},
        wraps=True,
        rounds=without_numbers,
        mods=(fixedclipping_mod,),
    ),
    # So slow that it makes no difference in which direction the norm moves, in which Flower's and ours differ.
    Case(
        ADAPTIVE_AT_SERVER,
        {**ADAPTIVE, "clip_norm_lr": 1e-15},
        wraps=True,
        attributes=MOVING,
        rounds=without_numbers,
    ),
    Case(
        ADAPTIVE_AT_NODES,
        {**ADAPTIVE, "clip_norm_lr": 1e-15},
        wraps=True,
        attributes=MOVING,
        rounds=without_numbers,
        mods=(adaptiveclipping_mod,),
    ),
    Case(
        FIXED_AT_SERVER,
        {"noise_multiplier": 0.5, "clipping_norm": 2.0, "num_sampled_clients": NODES},
        {"noise_seed": 8},
        wraps=True,
        label=f"{FIXED_AT_SERVER}-noise",
    ),
    Case(
        ADAPTIVE_AT_NODES,
        {**ADAPTIVE, "noise_multiplier": 0.5},
        {"noise_seed": 8},
        wraps=True,
        mods=(adaptiveclipping_mod,),
        label=f"{ADAPTIVE_AT_NODES}-noise",
    ),
    Case("QFedAvg", {"client_learning_rate": 0.1, "q": 0.0}, label="QFedAvg-mean"),
    Case("CompressedBroadcast", ours={"precision": "float16", "zstd_level": 3}, wraps=True),
    Case("SecAggPlus", ours={"clipping_range": 100.0}, wraps=True, mods=(secaggplus_mod,)),
]

PEERS = [case for case in CASES if not case.ours]
