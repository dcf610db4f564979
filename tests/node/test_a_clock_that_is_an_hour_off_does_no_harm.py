"""Deadlines and leases are the server's: what a node's own clock says does not matter."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest

from fedq.apps.error import ErrorCode
from fedq.relay import claims
from tests.node.conftest import Federation, open_gate
from tests.support.waiting import wait_until

pytestmark = pytest.mark.every_isolation


@pytest.mark.parametrize("ahead", [3600, pytest.param(-3600, marks=pytest.mark.slow)])
def test_messages_are_run_and_claims_renewed(federation: Federation, ahead: int) -> None:
    federation.site(clock_off=ahead, lease=2.0)
    run = federation.run()
    # A minute to live: by the node's clock it is long over, or an hour away.
    assert run.metrics(run.push("clinic-a", "train", run.arrays(np.zeros(1)), ttl=60.0))["count"] == 1

    gate = run.gate()
    message = run.push("clinic-a", "train.wait", run.config(gate=gate))
    first = wait_until(lambda: run.claim(message), "the message is claimed")
    renewed = wait_until(
        lambda: (state := run.claim(message)) and state.lease_end > first.lease_end + 2.0 and state,
        "the claim outlives its first lease by renewals",
    )
    assert renewed.token == first.token
    open_gate(gate)

    assert run.wait_for(message).attempt == 1


def test_a_message_whose_time_is_up_is_answered_by_an_error_and_not_run(federation: Federation) -> None:
    federation.site(clock_off=-3600)
    run = federation.run()
    assert run.error(run.push("clinic-a", "train", run.arrays(np.zeros(1)), ttl=0.0)).code == ErrorCode.MESSAGE_EXPIRED


def test_the_claim_of_a_killed_worker_is_freed_by_a_successor_with_a_wrong_clock(federation: Federation) -> None:
    site = federation.site()
    run = federation.run()
    gate = run.gate()
    message = run.push("clinic-a", "train.wait", run.config(gate=gate))
    wait_until(lambda: run.claim(message), "the message is claimed")
    os.kill(site.service.pid, signal.SIGKILL)
    site.service.kill()
    federation.site(clock_off=3600)
    wait_until(lambda: claims.read_claims(federation.relay, "clinic-a")[message].attempt == 2, "it is claimed again")
    open_gate(gate)

    assert run.wait_for(message).attempt == 2
