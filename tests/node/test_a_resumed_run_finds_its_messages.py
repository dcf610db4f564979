"""A run that failed and is resumed goes on with the messages and Contexts that it had, as if it had never failed."""

from __future__ import annotations

import numpy as np
import pytest

from fedq.relay import runs
from tests.node.conftest import Federation, open_gate
from tests.support import processes
from tests.support.waiting import wait_until

pytestmark = pytest.mark.every_isolation


def test_what_was_under_way_is_ended_and_run_again_after_the_resume(federation: Federation) -> None:
    federation.site(lease=2.0)
    run = federation.run()
    assert run.metrics(run.push("clinic-a", "train", run.arrays(np.zeros(1))))["count"] == 1
    gate = run.gate()
    message = run.push("clinic-a", "train.wait", run.config(gate=gate))
    behind = run.push("clinic-a", "train", run.arrays(np.zeros(1)))
    wait_until(run.notes, "the app runs")

    runs.finish(federation.relay, run.run, run.token, "failed", reason="lost too often")
    pid = int(run.notes()[0].split()[-1])
    wait_until(lambda: processes.gone(pid), "the app of a run that has failed is ended")
    assert runs.resume_run(federation.relay, run.run) is runs.Step.OK
    wait_until(lambda: len(run.notes()) == 2, "the app runs again", timeout=30)
    open_gate(gate)

    assert run.metrics(message)["count"] == 2
    assert run.metrics(behind)["count"] == 3


@pytest.mark.slow
def test_a_supernode_that_starts_while_the_run_has_failed_finds_them_when_it_is_resumed(
    federation: Federation,
) -> None:
    site = federation.site()
    run, other = federation.run(), federation.run()
    site.service.stop()
    message = run.push("clinic-a", "train", run.arrays(np.zeros(1)))
    runs.finish(federation.relay, run.run, run.token, "failed", reason="lost too often")
    federation.site()
    assert other.metrics(other.push("clinic-a", "train", other.arrays(np.zeros(1))))["count"] == 1
    assert run.answer(message) is None

    runs.resume_run(federation.relay, run.run)

    assert run.metrics(message)["count"] == 1
