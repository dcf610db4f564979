"""Before the first message its way is rehearsed: all of it, and nothing of it is seen anywhere."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest

from fedq.node.clientapps import ClientAppWork
from fedq.node.rehearsal import TIMES, rehearse
from fedq.node.settings import NodeSettings
from fedq.node.trust import TrustPolicy
from fedq.relay.connection import Relay
from fedq.relay.jobs import parent

NOWHERE = "unix:///nowhere/redis.sock"


def test_each_message_of_it_is_claimed_executed_and_committed_without_a_server(tmp_path: Path) -> None:
    settings = NodeSettings(name="clinic-a", redis_url=NOWHERE, cache_dir=tmp_path)
    reports = rehearse(settings, ClientAppWork)
    # The parent is asked for the commit, and then told of the outcome.
    assert [next(iter(report)) for report in reports] == ["ask", "outcome"] * TIMES
    assert all(report["ask"]["ok"] and report["ask"]["context"] for report in reports[::2])
    assert {report["outcome"]["status"] for report in reports[1::2]} == {"committed"}


def test_nothing_is_different_afterwards(tmp_path: Path) -> None:
    out, err, handlers = sys.stdout, sys.stderr, list(logging.getLogger().handlers)
    work = ClientAppWork(NodeSettings(name="clinic-a", redis_url=NOWHERE, cache_dir=tmp_path / "cache"))
    apps, cache = work.apps, work.cache
    work.preload()
    assert (work.apps, work.cache) == (apps, cache)
    assert not (tmp_path / "cache").exists()
    assert parent() is None
    assert (sys.stdout, sys.stderr, logging.getLogger().handlers) == (out, err, handlers)


def test_what_the_owner_imposes_takes_no_part(tmp_path: Path) -> None:
    settings = NodeSettings(
        name="clinic-a",
        redis_url=NOWHERE,
        cache_dir=tmp_path,
        labels={"site": "eu"},
        trust=TrustPolicy(digests=frozenset({"0" * 64})),
        mods=("fedq.apps.mod:DenyKeysMod('arrays')",),
    )
    assert len(rehearse(settings, ClientAppWork)) == 2 * TIMES


def test_a_worker_without_a_job_rehearses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise AssertionError("rehearsed")

    monkeypatch.setattr("fedq.node.clientapps.rehearse", refused)
    work = ClientAppWork(NodeSettings(name="clinic-a", redis_url=NOWHERE))
    assert isinstance(work.relay, Relay)
