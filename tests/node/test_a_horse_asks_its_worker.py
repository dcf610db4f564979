"""A process forked for one message lets its worker claim and commit; what the worker cannot do it does itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedq.node.bundle import AppCache
from fedq.node.cache import ObjectCache
from fedq.node.clientapps import ClientAppAssignment, ClientAppWork
from fedq.node.execution import Errand, Execution
from fedq.node.settings import NodeSettings
from fedq.relay import claims, nodes
from fedq.relay.connection import Relay
from fedq.relay.keys import GROUP
from tests.node.conftest import Federation, HandRun
from tests.support.servers import RealServer


class Worker:
    """A worker's side, which may fail or lose its answers."""

    def __init__(self, assignment: ClientAppAssignment, spoil: Callable[[Any], Any] = lambda answer: answer) -> None:
        self.assignment = assignment
        self.spoil = spoil
        self.asked: list[str] = []

    def ahead(self) -> Any:
        self.asked.append("ahead")
        return self.spoil(self.assignment.ahead())

    def ask(self, request: Any) -> Any:
        self.asked.append("commit")
        return self.spoil(self.assignment.answer(request))


@pytest.fixture
def settings(server: RealServer, tmp_path: Path) -> NodeSettings:
    return NodeSettings("clinic-a", redis_url=server.url, cache_dir=tmp_path / "cache")


@pytest.fixture
def run(federation: Federation, settings: NodeSettings) -> HandRun:
    nodes.add(federation.relay, settings.name)
    nodes.beat(federation.relay, settings.name, ttl=600)
    federation.relay.redis.xgroup_create(federation.relay.keys.inbox(settings.name), GROUP, id="0", mkstream=True)
    return federation.run()


def errand_of(relay: Relay, run: HandRun, message: str) -> Errand:
    ((entry, _),) = relay.redis.xrange(relay.keys.inbox("clinic-a"))
    return Errand("clinic-a", run.run, entry.decode(), message, claims.new_token(), "train", "1", "here")


def execute(settings: NodeSettings, relay: Relay, errand: Errand, spoil: Callable[[Any], Any]) -> tuple[str, Worker]:
    work = ClientAppWork(settings)
    worker = Worker(ClientAppAssignment(work, errand, None), spoil)
    cache = ObjectCache(settings.cache_folder / "arrays")
    try:
        made = Execution(
            settings, relay, errand, apps=AppCache(settings.cache_folder, cache), cache=cache, parent=worker
        )
        return made.run().status, worker
    finally:
        work.steps.close()


class Counting(Relay):
    """A handle that notes the steps it is used for."""

    steps: list[str]

    def call(self, name: str, keys: Any, args: Any) -> list[Any]:
        self.steps.append(name)
        return super().call(name, keys, args)


@pytest.fixture
def own(server: RealServer) -> Any:
    relay = Counting(server.url)
    relay.steps = []
    with relay:
        yield relay


def test_of_a_small_message_it_calls_no_step_itself(run: HandRun, settings: NodeSettings, own: Counting) -> None:
    message = run.push("clinic-a", "train", run.arrays(np.zeros(2)))
    status, worker = execute(settings, own, errand_of(run.relay, run, message), lambda answer: answer)
    assert status == "committed"
    assert worker.asked == ["ahead", "commit"]
    assert own.steps == []
    assert run.metrics(message)["count"] == 1


def test_what_its_worker_cannot_do_it_does_itself(run: HandRun, settings: NodeSettings, own: Counting) -> None:
    """The worker's answers are lost, though it has done everything: claim and commit are made again, and count once."""
    for count in (1, 2):
        message = run.push("clinic-a", "train", run.arrays(np.zeros(2)))
        status, _ = execute(settings, own, errand_of(run.relay, run, message), lambda answer: None)
        assert status == "committed"
        assert run.metrics(message)["count"] == count
        assert run.wait_for(message).attempt == 1
    assert own.steps.count("claim") == own.steps.count("commit") == 2
    pointers = run.relay.redis.xlen(run.relay.keys.replies("clinic-a", run.run))
    assert pointers == 2


def test_what_is_large_it_uploads_and_commits_itself(run: HandRun, settings: NodeSettings, own: Counting) -> None:
    message = run.push("clinic-a", "train", run.arrays(np.zeros(100_000)))
    status, worker = execute(settings, own, errand_of(run.relay, run, message), lambda answer: answer)
    assert status == "committed"
    assert worker.asked == ["ahead"]
    assert "commit" in own.steps
    assert run.metrics(message)["count"] == 1


def test_what_is_not_to_be_run_is_not_run(run: HandRun, settings: NodeSettings, own: Counting) -> None:
    message = run.push("clinic-a", "train", run.arrays(np.zeros(2)))
    errand = errand_of(run.relay, run, message)
    other = claims.claim(run.relay, "clinic-a", run.run, errand.entry, message, "another")
    assert other.outcome is claims.Claim.OK
    status, worker = execute(settings, own, errand, lambda answer: answer)
    assert status == "busy"
    assert worker.asked == ["ahead"]
    # The claim of the other one stands.
    assert run.claim(message) is not None
    assert run.answer(message) is None
