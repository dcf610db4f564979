"""No order in which replies arrive changes a bit of what a strategy makes of them."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.apps.strategies.cases import CASES, NODES, Case
from tests.apps.strategies.scripted import Trained, trained

_EXPECTED: dict[str, Trained] = {}


@pytest.mark.parametrize("case", CASES, ids=str)
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(NODES)))
def test_any_order_of_arrival_gives_the_same_bits(case: Case, order: list[int]) -> None:
    initial, rounds = case.rounds("float32")
    if str(case) not in _EXPECTED:
        _EXPECTED[str(case)] = trained(case.make(), initial, rounds, mods=case.mods)
    expected = _EXPECTED[str(case)]
    found = trained(case.make(), initial, rounds, order=order, mods=case.mods)
    assert found.result == expected.result
    for one, other in zip(found.models, expected.models, strict=True):
        assert {name: array.tobytes() for name, array in one.items()} == {
            name: array.tobytes() for name, array in other.items()
        }
