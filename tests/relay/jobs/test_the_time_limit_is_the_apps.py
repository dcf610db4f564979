"""A time limit is the app's: what comes before the app waits for the server, and is no reason for an error."""

from __future__ import annotations

from typing import Any

import pytest

from fedq.relay.jobs.watch import Kill, Timing, Watch
from fedq.relay.jobs.work import Assignment, Cause, CauseKind, Stage


class Nothing(Assignment):
    """An assignment of which nothing is asked."""

    group = "1"


@pytest.fixture
def watch() -> Watch:
    return Watch(Nothing(), Timing(), wake=lambda: None, limit=0.0)


def killed(watch: Watch) -> Cause:
    assert watch.verdict(None) is Kill.TIME_LIMIT
    ended = watch.killed(Kill.TIME_LIMIT)
    assert ended.cause is not None
    return ended.cause


def test_one_that_does_not_come_to_its_app_is_killed_and_counts_as_lost(watch: Watch) -> None:
    cause = killed(watch)
    assert cause.kind is CauseKind.EXIT
    assert "had not begun" in cause.detail


def test_one_whose_app_takes_too_long_is_answered(watch: Watch) -> None:
    watch.hear([{"stage": Stage.STARTED}])
    assert killed(watch).kind is CauseKind.TIME_LIMIT


@pytest.mark.parametrize("stages", [["finished"], ["started", "finished"]])
def test_between_loading_and_the_app_and_after_it_there_is_no_limit(watch: Watch, stages: list[Any]) -> None:
    watch.hear([{"stage": stage} for stage in stages])
    assert watch.verdict(None) is None
