"""A connection that is cut while a worker takes a job leaves a job that RQ calls queued and no worker has heard of."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fedq.node.inbox import Waiting
from fedq.node.jobqueue import LOST_JOB, JobQueue
from fedq.relay.connection import Relay
from fedq.relay.jobs import FedqQueue

MESSAGE = Waiting("1-1", "m" * 32, 1, 1, "train", "1", 0.0, 10)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def jobs(relay: Relay) -> Iterator[tuple[JobQueue, Clock]]:
    clock = Clock()
    yield JobQueue(relay, "clinic-a", clock=clock), clock
    relay.redis.delete(*relay.redis.keys("rq:*"))


def test_a_job_on_its_way_counts_as_alive_for_a_moment_and_as_lost_afterwards(
    jobs: tuple[JobQueue, Clock], relay: Relay
) -> None:
    queue, clock = jobs
    first = queue.add(MESSAGE, attempt=0, time_limit=None)
    assert queue.without_job([first]) == []

    assert relay.redis.lpop(FedqQueue("clinic-a", relay.redis).key) is not None
    assert queue.without_job([first]) == []
    clock.now += LOST_JOB
    assert queue.without_job([first]) == [first]

    second = queue.add(MESSAGE, attempt=0, time_limit=None)
    assert second.job_id != first.job_id
    assert queue.without_job([second]) == []
    assert FedqQueue("clinic-a", relay.redis).get_job_ids() == [second.job_id]


def test_a_job_made_by_an_earlier_dispatcher_is_taken_over(jobs: tuple[JobQueue, Clock], relay: Relay) -> None:
    queue, clock = jobs
    first = queue.add(MESSAGE, attempt=0, time_limit=None)

    assert JobQueue(relay, "clinic-a", clock=clock).add(MESSAGE, attempt=0, time_limit=None).job_id == first.job_id
