"""Which test proves what of which strategy. A strategy without a row, or a row without its tests, fails here.

Each has a test of its update against the paper on small numbers, one against Flower's class on the same replies, one
over orders of arrival, and one each in which its ServerApp is killed in mid-round: in a process, and over Redis.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from fedq.apps import strategy as strategies
from fedq.apps.strategy import Strategy
from fedq.apps.strategy.gathering import Gathering
from tests.apps.strategies.cases import CASES, NODES, Case
from tests.apps.strategies.scripted import trained

TESTS = Path(__file__).parents[2]

PEER = "apps/strategies/test_flower_peer.py::test_the_models_and_metrics_are_those_of_flower[{}]"
AVERAGE = "apps/strategies/test_flower_peer.py::test_the_average_is_that_of_flowers_fedavg[{}]"
ORDER = "apps/strategies/test_order_of_arrival.py::test_any_order_of_arrival_gives_the_same_bits[{}]"
KILL = "apps/strategies/test_resume.py::test_a_run_that_was_killed_in_mid_round_ends_with_the_same_bits[{}]"
REDIS = "relay/link/test_strategies_resume.py::test_a_strategy_that_was_lost_in_mid_round_ends_with_the_same_bits[{}]"
ASYNC_KILL = "apps/strategies/test_asynchronous.py::test_killed_after_any_reply_it_goes_on_as_if_it_had_not_been[{}]"
ASYNC_REDIS = "relay/link/test_asynchronous_resume.py::test_killed_after_any_call_it_counts_each_reply_once[{}]"

AVG = "apps/test_strategy_fedavg.py::"
OPT = "apps/strategies/test_server_optimizers.py::"
ROBUST = "apps/strategies/test_robust_strategies.py::"
QFED = "apps/strategies/test_qfedavg.py::"
TREES = "apps/strategies/test_boosted_trees.py::"
DP = "apps/strategies/test_differential_privacy.py::"
ASYNC = "apps/strategies/test_asynchronous.py::"
BROADCAST = "apps/strategies/test_compressed_broadcast.py::"
SECURE = "apps/strategies/test_secaggplus.py::"
SECURE_REDIS = "relay/link/test_grid_secagg.py::"


class Row(NamedTuple):
    """Names of tests; ``[{}]`` stands for the case with the name of the strategy. None: Flower has no such class."""

    paper: str
    flower: str | None
    order: str = ORDER
    kill: str = KILL
    redis: str = REDIS


FAMILY = OPT + "test_the_family_follows_reddi_et_al_2020_algorithm_2"
ROWS = {
    "FedAvg": Row(AVG + "test_the_model_is_the_average_weighted_by_the_number_of_examples", PEER),
    "FedProx": Row(OPT + "test_a_node_that_adds_the_proximal_term_stays_closer_to_what_it_was_sent", PEER),
    "FedAvgM": Row(OPT + "test_fedavgm_follows_hsu_et_al_2019_section_4_3", PEER),
    "FedAdagrad": Row(FAMILY + "[adagrad]", PEER),
    "FedAdam": Row(FAMILY + "[adam as published]", PEER),
    "FedYogi": Row(FAMILY + "[yogi]", PEER),
    "QFedAvg": Row(QFED + "test_the_step_is_that_of_li_et_al_2020_algorithm_2", PEER),
    "FedMedian": Row(ROBUST + "test_the_median_is_taken_coordinate_by_coordinate", PEER),
    "FedTrimmedAvg": Row(ROBUST + "test_the_trimmed_mean_leaves_out_as_many_at_either_end", PEER),
    "Krum": Row(ROBUST + "test_krum_takes_the_reply_of_the_lowest_score_as_it_is", PEER),
    "MultiKrum": Row(ROBUST + "test_multi_krum_averages_those_of_the_lowest_scores", PEER),
    "Bulyan": Row(ROBUST + "test_bulyan_is_the_mean_around_the_median_of_those_selected", PEER),
    "FedXgbBagging": Row(TREES + "test_all_rounds_and_classes_of_a_reply_are_added", PEER),
    "FedXgbCyclic": Row(TREES + "test_one_node_after_the_other_goes_on_with_the_model", PEER),
    "DifferentialPrivacyServerSideFixedClipping": Row(
        DP + "test_longer_updates_are_scaled_to_the_norm_and_shorter_ones_stay", PEER
    ),
    "DifferentialPrivacyClientSideFixedClipping": Row(
        DP + "test_clipping_at_the_nodes_gives_what_clipping_at_the_server_gives", PEER
    ),
    "DifferentialPrivacyServerSideAdaptiveClipping": Row(
        DP + "test_the_norm_moves_as_in_andrew_et_al_2019_algorithm_1", PEER
    ),
    "DifferentialPrivacyClientSideAdaptiveClipping": Row(
        DP + "test_at_the_nodes_the_norm_moves_in_the_same_way_and_the_bits_are_no_metric", PEER
    ),
    "CompressedBroadcast": Row(BROADCAST + "test_the_server_loses_nothing_by_the_rounding", AVERAGE),
    "SecAggPlus": Row(
        SECURE + "test_the_sum_is_that_of_the_quantised_updates_to_the_last_bit",
        AVERAGE,
        redis=SECURE_REDIS + "test_secure_aggregation_killed_after_any_call_ends_with_the_same_bits",
    ),
    "FedBuff": Row(
        ASYNC + "test_fedbuff_takes_a_step_along_the_mean_of_its_buffer_with_stale_updates_for_less",
        AVERAGE,
        ASYNC + "test_within_a_buffer_any_order_of_arrival_gives_the_same_bits",
        ASYNC_KILL,
        ASYNC_REDIS,
    ),
    "FedAsync": Row(
        ASYNC + "test_fedasync_mixes_each_reply_into_the_model",
        None,
        ASYNC + "test_fedasync_makes_of_any_order_of_arrival_what_its_rule_makes_of_it",
        ASYNC_KILL,
        ASYNC_REDIS,
    ),
}


def test_every_strategy_has_a_row() -> None:
    classes = (cls for name in strategies.__all__ if isinstance(cls := getattr(strategies, name), type))
    assert set(ROWS) == {cls.__name__ for cls in classes if issubclass(cls, Strategy) and not inspect.isabstract(cls)}


@pytest.mark.parametrize("name", ROWS)
def test_the_tests_of_a_row_are_there(name: str) -> None:
    missing = [told for told in ROWS[name] if told is not None and not is_there(told.format(name))]
    assert missing == []


# -- the table in the docs ---------------------------------------------------------------------------------------------

KEPT = {
    "sampling": "sampling",
    "momentum": "velocity",
    "first-moment": "both moments",
    "second-moment": "both moments",
    "cycle": "order of the nodes",
    "in-flight": "what is under way",
    "noise": "seed of the noise",
    "privacy": "account of epsilon",
    "clipping": "clipping norm",
}
"""What `docs/strategies.md` calls the records that strategies keep from round to round."""


def documented() -> dict[str, list[str]]:
    """The cells of the table of strategies, by the name of the strategy."""
    found = {}
    for line in (TESTS.parent / "docs" / "strategies.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if len(cells) == 5:
            found.update(dict.fromkeys(re.findall(r"`(\w+)`", cells[0]), cells))
    return found


def state_of(name: str) -> set[str]:
    """The records that the strategy keeps after a round, with all that makes it keep any."""
    case = next((case for case in CASES if case.name == name), Case(name, {"buffer_size": NODES}))
    if "noise_multiplier" in case.arguments:  # without noise there is nothing to account for
        case = replace(case, arguments={**case.arguments, "noise_multiplier": 0.5})
    made = strategies.FedAsync() if name == "FedAsync" else case.make()
    initial, rounds = case.rounds("float32")
    trained(made, initial, rounds[:1], mods=case.mods, together=True)
    return set(made.save_state())


def test_the_docs_have_a_row_for_every_strategy() -> None:
    assert set(documented()) == set(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_the_docs_say_what_a_strategy_keeps_from_round_to_round(name: str) -> None:
    kept = state_of(name)
    told = documented()[name][-1]
    inner = {record for record in kept if record.startswith("wrapped.")}
    wraps = bool(inner) or name in ("SecAggPlus", "CompressedBroadcast")
    assert ("what the wrapped one does" in told) == wraps
    said = {record for record, words in KEPT.items() if words in told}
    assert said == kept - inner - ({"sampling"} if wraps else set())


@pytest.mark.parametrize("name", ROWS)
def test_the_docs_say_which_strategies_need_all_replies(name: str) -> None:
    assert (documented()[name][3] == "yes") == issubclass(getattr(strategies, name), Gathering)


def is_there(told: str) -> bool:
    """Whether ``FILE::TEST`` is a test, and ``[CASE]`` one of its cases."""
    path, _, rest = told.partition("::")
    name, _, case = rest.removesuffix("]").partition("[")
    if not (TESTS / path).is_file():
        return False
    function = getattr(importlib.import_module("tests." + path.removesuffix(".py").replace("/", ".")), name, None)
    return function is not None and (not case or case in set(cases(function)))


def cases(function: Any) -> Iterator[str]:
    """What pytest calls the values of each parameter of a test."""
    for mark in getattr(function, "pytestmark", ()):
        if mark.name != "parametrize":
            continue
        ids = mark.kwargs.get("ids")
        for place, value in enumerate(mark.args[1]):
            if isinstance(ids, list | tuple):
                yield str(ids[place])
            else:
                yield str(getattr(value, "id", None) or value)
