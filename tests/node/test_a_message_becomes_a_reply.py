"""In each isolation: a message in the inbox is run as an RQ job and answered, with its Context kept."""

from __future__ import annotations

import numpy as np
import pytest

from tests.node.conftest import Federation

ISOLATIONS = ("fork", "run", "inline")


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_messages_are_answered_in_order_and_their_context_is_kept(federation: Federation, isolation: str) -> None:
    site = federation.site(isolation=isolation)
    run = federation.run()
    weights = np.arange(6, dtype=np.float32).reshape(2, 3)

    sent = [run.push("clinic-a", "train", run.arrays(weights), group=str(i)) for i in range(1, 5)]

    replies = [run.content(message) for message in sent]
    counts = [reply.metric_records["metrics"]["count"] for reply in replies]
    assert counts == [1, 2, 3, 4]
    np.testing.assert_array_equal(replies[0].array_records["arrays"].to_numpy_ndarrays()[0], weights + 1)
    assert [run.wait_for(message).attempt for message in sent] == [1, 1, 1, 1]
    pids = {reply.metric_records["metrics"]["pid"] for reply in replies}
    assert len(pids) == (4 if isolation == "fork" else 1)
    assert site.service.pid not in pids


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_each_execution_is_a_job_that_tells_about_itself(federation: Federation, isolation: str) -> None:
    site = federation.site(isolation=isolation)
    run = federation.run()

    message = run.push("clinic-a", "train", run.arrays(np.zeros(3)), group="3")

    run.content(message)
    job = site.ended_job(message)
    assert job.get_status() == "finished"
    assert job.description == f"run {run.run} · train · round 3 · clinic-a · attempt 1"
    assert job.origin == "clinic-a"
    meta = job.get_meta()
    told = {key: meta[key] for key in ("run", "type", "group", "node", "attempt", "outcome")}
    assert told == {
        "run": run.run, "type": "train", "group": "3", "node": "clinic-a", "attempt": 1, "outcome": "committed",
    }  # fmt: skip
    assert meta["bytes_in"] > 0
    assert meta["bytes_out"] > 0
    assert meta["seconds"] > 0


def test_large_arrays_travel_beside_the_message_and_unchanged_ones_do_not_come_back(federation: Federation) -> None:
    federation.site()
    run = federation.run()
    weights = np.random.default_rng(1).integers(0, 99, size=(1500, 1000)).astype(np.float64)  # 12 MB: three chunks

    first = run.push("clinic-a", "train", run.arrays(weights))
    reply = run.content(first)
    second = run.push("clinic-a", "train", reply)

    np.testing.assert_array_equal(reply.array_records["arrays"].to_numpy_ndarrays()[0], weights + 1)
    again = run.content(second)
    np.testing.assert_array_equal(again.array_records["arrays"].to_numpy_ndarrays()[0], weights + 2)
    assert again.metric_records["metrics"]["count"] == 2

    echo = run.push("clinic-a", "train.echo", reply)

    same = run.content(echo)
    np.testing.assert_array_equal(same.array_records["arrays"].to_numpy_ndarrays()[0], weights + 1)
    assert run.wait_for(echo).own == ()


def test_the_app_sees_the_nodes_config_the_runs_config_and_one_thread(federation: Federation) -> None:
    federation.site(config={"partition-id": 3, "path": "/data"})
    run = federation.run(config={"lr": 0.5})

    message = run.push("clinic-a", "query", run.config(), group="7")

    facts = dict(run.content(message).config_records["config"])
    assert facts == {
        "node-partition-id": 3, "node-path": "/data", "run-lr": 0.5, "OMP_NUM_THREADS": "1",
        "type": "query", "node": "clinic-a", "run": run.run, "group": "7",
    }  # fmt: skip
