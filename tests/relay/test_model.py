"""The steps do what the model does, whatever the order, on fakeredis and on a real server."""

from __future__ import annotations

import fakeredis
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from fedq.relay.connection import Relay
from tests.relay.machine import Protocol

CALM = settings(deadline=None, suppress_health_check=list(HealthCheck), print_blob=False)


class OnFakeRedis(Protocol):
    def relay(self) -> Relay:
        relay = Relay("redis://nowhere")
        relay.redis = fakeredis.FakeRedis(protocol=2)
        return relay


@pytest.fixture
def on_a_server(relay: Relay) -> type[Protocol]:
    class OnServer(Protocol):
        def relay(self) -> Relay:
            return relay

    return OnServer


def test_the_steps_do_what_the_model_does() -> None:
    run_state_machine_as_test(OnFakeRedis, settings=settings(CALM, max_examples=15, stateful_step_count=40))


def test_the_steps_do_what_the_model_does_on_a_real_server(on_a_server: type[Protocol]) -> None:
    run_state_machine_as_test(on_a_server, settings=settings(CALM, max_examples=30, stateful_step_count=50))


@pytest.mark.slow
@pytest.mark.one_server
def test_the_steps_do_what_the_model_does_for_long(on_a_server: type[Protocol]) -> None:
    run_state_machine_as_test(on_a_server, settings=settings(CALM, max_examples=500, stateful_step_count=60))
