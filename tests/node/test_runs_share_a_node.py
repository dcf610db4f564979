"""Runs take turns on a node; none holds up another for longer than its time limit, and each keeps its own order."""

from __future__ import annotations

import numpy as np
import pytest

from fedq.apps import ErrorCode
from fedq.relay.jobs import FedqQueue
from tests.node.conftest import FORK_OR_ALL, Federation, open_gate
from tests.support.waiting import wait_until


@pytest.mark.parametrize("isolation", FORK_OR_ALL)
def test_with_two_slots_a_stuck_run_does_not_hold_up_another(federation: Federation, isolation: str) -> None:
    federation.site(slots=2, isolation=isolation)
    stuck, lively = federation.run(), federation.run()
    gate = stuck.gate()
    held = stuck.push("clinic-a", "train.wait", stuck.config(gate=gate))
    stuck.push("clinic-a", "train", stuck.arrays(np.zeros(1)))
    wait_until(stuck.notes, "the first run's app waits")

    counts = [lively.metrics(lively.push("clinic-a", "train", lively.arrays(np.zeros(1))))["count"] for _ in range(5)]

    assert counts == [1, 2, 3, 4, 5]
    assert stuck.answer(held) is None
    open_gate(gate)
    assert stuck.metrics(held)["count"] == 1


def test_with_one_slot_another_run_waits_no_longer_than_the_time_limit(federation: Federation) -> None:
    federation.site()
    stuck, lively = federation.run(time_limit=1.0), federation.run()
    held = stuck.push("clinic-a", "train.hang", stuck.config())
    later = [stuck.push("clinic-a", "train.hang", stuck.config()) for _ in range(3)]
    wait_until(stuck.notes, "the first run's app hangs")

    message = lively.push("clinic-a", "train", lively.arrays(np.zeros(1)))

    assert lively.metrics(message)["count"] == 1
    assert stuck.error(held).code == ErrorCode.TIME_LIMIT
    # One message of the stuck run came first, not all of them.
    assert stuck.answer(later[-1]) is None
    stuck.stop()


def test_runs_take_turns_however_much_one_has_sent(federation: Federation) -> None:
    federation.site()
    first, second = federation.run(), federation.run()
    gate = first.gate()
    held = first.push("clinic-a", "train.wait", first.config(gate=gate))
    wait_until(first.notes, "the app waits")
    many = [first.push("clinic-a", "train", first.arrays(np.zeros(1))) for _ in range(10)]
    few = [second.push("clinic-a", "train", second.arrays(np.zeros(1))) for _ in range(2)]

    open_gate(gate)

    last = first.wait_for(many[-1])
    assert first.wait_for(held).created <= second.wait_for(few[0]).created <= first.wait_for(many[1]).created
    assert second.wait_for(few[1]).created <= first.wait_for(many[3]).created <= last.created


def test_at_most_one_message_of_a_run_is_in_the_queue_and_no_more_jobs_than_slots(federation: Federation) -> None:
    site = federation.site(slots=2)
    runs = [federation.run() for _ in range(4)]
    gates = [run.gate() for run in runs]
    for run, gate in zip(runs, gates, strict=True):
        run.push("clinic-a", "train.wait", run.config(gate=gate))
        run.push("clinic-a", "train", run.arrays(np.zeros(1)))

    wait_until(lambda: sum(bool(run.notes()) for run in runs) == 2, "two apps wait")

    assert len(site.jobs()) == 2
    assert len(FedqQueue("clinic-a", federation.relay.redis).get_job_ids()) == 0
    for run, gate in zip(runs, gates, strict=True):
        wait_until(run.notes, "the run's turn has come")
        open_gate(gate)
    for run in runs:
        assert [run.metrics(message)["count"] for message in run.sent] == [1, 2]


def test_two_workers_share_the_messages_of_two_runs_and_each_run_keeps_its_order(federation: Federation) -> None:
    node = federation.site(isolation="run", labels={"site": "eu"})
    extra = federation.site(what="worker", isolation="run", wait=False)
    wait_until(lambda: "is ready" in extra.service.output(), "the worker is ready")
    # The worker has the labels of its SuperNode, by which the runs choose.
    left, right = federation.run(selector={"site": "eu"}), federation.run(selector={"site": "eu"})
    gates = [left.gate(), right.gate()]

    first = [
        run.push("clinic-a", "train.wait", run.config(gate=g)) for run, g in zip((left, right), gates, strict=True)
    ]
    more = [[run.push("clinic-a", "train", run.arrays(np.zeros(1))) for _ in range(5)] for run in (left, right)]
    # Both wait at the same time: on one worker each, since each has one slot.
    wait_until(lambda: left.notes() and right.notes(), "both runs' apps wait at once")
    for gate in gates:
        open_gate(gate)

    for run, held, rest in zip((left, right), first, more, strict=True):
        assert [run.metrics(message)["count"] for message in (held, *rest)] == [1, 2, 3, 4, 5, 6]
    # A message is answered before RQ hears of its job's end.
    workers = wait_until(
        lambda: (names := {job.worker_name for job in node.jobs()}) and None not in names and names,
        "all jobs are shown as done",
    )
    assert len(workers) == 2


def test_a_cancelled_message_is_skipped_and_the_next_one_runs(federation: Federation) -> None:
    from fedq.apps import Error
    from fedq.relay import messages

    federation.site()
    run = federation.run()
    held = run.push("clinic-a", "train.hang", run.config())
    behind = run.push("clinic-a", "train", run.arrays(np.zeros(1)))
    wait_until(run.notes, "the app hangs")

    sent = messages.outstanding(run.relay, run.run)[held]
    error = Error(ErrorCode.CANCELLED, "not needed any more")
    messages.answer(run.relay, run.run, "clinic-a", sent.entry, held, messages.Reason.CANCELLED, error, token=run.token)

    assert run.metrics(behind)["count"] == 1
    assert run.error(held).code == ErrorCode.CANCELLED
