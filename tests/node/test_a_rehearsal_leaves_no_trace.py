"""The way of a message is rehearsed where processes are forked for them: all of it, and nothing is seen of it."""

from __future__ import annotations

import logging
import os
import random
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from fedq.node.clientapps import ClientAppWork
from fedq.node.rehearsal import TIMES, rehearse
from fedq.node.settings import NodeSettings
from fedq.node.trust import TrustPolicy
from fedq.relay.jobs import parent


@pytest.fixture
def settings(tmp_path: Path) -> NodeSettings:
    return NodeSettings(name="clinic-a", redis_url="unix:///nowhere", cache_dir=tmp_path / "cache")


def test_each_message_of_it_is_claimed_executed_and_committed_without_a_server(settings: NodeSettings) -> None:
    outcomes = list(rehearse(settings, ClientAppWork))
    assert len(outcomes) == TIMES
    assert {(outcome["status"], outcome["failure"]) for outcome in outcomes} == {("committed", None)}


def test_what_the_owner_has_decided_takes_no_part(settings: NodeSettings) -> None:
    settings = replace(
        settings,
        labels={"site": "eu"},
        trust=TrustPolicy(digests=frozenset({"0" * 64})),
        mods=("fedq.apps.mod:DenyKeysMod('arrays')",),
    )
    assert [outcome["status"] for outcome in rehearse(settings, ClientAppWork)] == ["committed"] * TIMES


def test_a_message_that_goes_wrong_ends_it_with_what_went_wrong(
    settings: NodeSettings,
) -> None:
    def distrusting(made: NodeSettings) -> ClientAppWork:
        return ClientAppWork(replace(made, trust=TrustPolicy(digests=frozenset({"0" * 64}))))

    with pytest.raises(RuntimeError, match=r"rehearsed came to .*does not run this app"):
        list(rehearse(settings, distrusting))


def test_nothing_is_different_afterwards(settings: NodeSettings) -> None:
    def seen() -> list[object]:
        root = logging.getLogger()
        return [sys.stdout, sys.stderr, list(root.handlers), root.level, threading.enumerate(), random.getstate(),
                sorted(os.listdir("/proc/self/fd")), parent()]  # fmt: skip

    list(rehearse(settings, ClientAppWork))  # the first loads modules
    before = seen()
    list(rehearse(settings, ClientAppWork))
    assert seen() == before
    assert not settings.cache_folder.exists()


def test_a_worker_without_a_second_message_rehearses_nothing(
    settings: NodeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise AssertionError("rehearsed")

    monkeypatch.setattr("fedq.node.clientapps.rehearse", refused)
    steps = ClientAppWork(settings).preload()
    with pytest.raises(AssertionError, match="rehearsed"):
        list(steps)
