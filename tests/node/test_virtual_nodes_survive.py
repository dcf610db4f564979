"""Whatever dies in the midst of a job of several virtual nodes costs the message under way one attempt at most.

What was committed is not run again, what was not begun is run once, and the Contexts have seen each message once.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from fedq.apps import ErrorCode
from fedq.node.execution import Errand
from fedq.node.settings import NodeSettings
from fedq.node.virtualjobs import Batch, VirtualWork, give_back
from fedq.relay import claims, runs
from fedq.relay.connection import Relay
from fedq.relay.jobs import Verdict
from tests.node.conftest import Federation, HandRun, Site, open_gate
from tests.support import processes
from tests.support.servers import RealServer
from tests.support.waiting import wait_until

pytestmark = pytest.mark.one_server

RUN_OR_ALL = ("run", *(pytest.param(name, marks=pytest.mark.slow) for name in ("inline", "fork")))
"""Isolations: simulations use ``run``."""
HOST = "ward"
NODES = [f"{HOST}-{number}" for number in range(6)]
VICTIM = NODES[2]
"""The node whose message is under way when something happens: two are committed, and three wait behind it."""
OTHERS = [node for node in NODES if node != VICTIM]


@pytest.fixture(params=RUN_OR_ALL)
def isolation(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def serve(federation: Federation, isolation: str, **settings: object) -> Site:
    """The service of the six nodes, with one worker that does in one job what it was given."""
    given = {"slots": 1, "budget": 60.0, "lease": 10.0, **settings}
    return federation.site(HOST, virtual=len(NODES), isolation=isolation, **given)


def batch(federation: Federation, run: HandRun, action: str, **values: object) -> dict[str, str]:
    """One message for each node, waiting for the service to start: ``action`` for the victim, a note for the others."""
    federation.known(HOST, len(NODES))
    return run.push_together(
        {node: (action, run.config(**values)) if node == VICTIM else ("train.mark", run.config()) for node in NODES}
    )


def lines(run: HandRun, word: str) -> list[str]:
    """What the app has noted that begins with the word, without it."""
    return [line.partition(" ")[2] for line in run.notes() if line.startswith(f"{word} ")]


def in_the_midst(site: Site, run: HandRun, word: str = "waits") -> int:
    """Wait until the victim's app runs in a job of all six; its process."""
    site.service.wait_until(lambda: lines(run, word), "the app of the third message runs")
    assert site.jobs()[0].meta["messages"] == len(NODES)
    assert lines(run, "runs") == OTHERS[:2]
    return int(lines(run, word)[0])


def settled(run: HandRun, sent: Mapping[str, str], *, attempts: int) -> None:
    """Everything is answered; the victim's message took ``attempts``, the others were run once."""
    for node in NODES:
        assert run.metrics(sent[node])["count"] == 1
        assert run.wait_for(sent[node]).attempt == (attempts if node == VICTIM else 1)
        assert run.relay.redis.xlen(run.relay.keys.replies(node, run.run)) == 1
    assert sorted(lines(run, "runs")) == OTHERS


def another_round(run: HandRun, count: int = 2, nodes: Sequence[str] = NODES) -> None:
    """The Contexts have seen each message once, and the next is answered."""
    sent = run.push_together({node: ("train.mark", run.config()) for node in nodes})
    assert {node: run.metrics(sent[node])["count"] for node in nodes} == dict.fromkeys(nodes, count)


def test_a_process_killed_in_the_midst_of_a_job_costs_one_attempt_of_one_message(
    federation: Federation, isolation: str
) -> None:
    run = federation.run()
    gate = run.gate()
    sent = batch(federation, run, "train.wait", gate=gate)
    site = serve(federation, isolation)

    os.kill(in_the_midst(site, run), signal.SIGKILL)

    wait_until(lambda: len(lines(run, "waits")) == 2, "the app waits again", timeout=30)
    open_gate(gate)
    settled(run, sent, attempts=2)
    another_round(run)


@pytest.mark.slow
@pytest.mark.parametrize("isolation", ["run", "fork"], indirect=True)
def test_a_worker_killed_with_the_process_that_it_keeps_costs_no_more(federation: Federation, isolation: str) -> None:
    run = federation.run()
    gate = run.gate()
    sent = batch(federation, run, "train.wait", gate=gate)
    site = serve(federation, isolation)
    process = in_the_midst(site, run)

    os.kill(site.pid_of("worker-0"), signal.SIGKILL)

    wait_until(lambda: processes.gone(process), "the process has gone with its worker")
    wait_until(lambda: len(lines(run, "waits")) == 2, "the app waits again", timeout=30)
    open_gate(gate)
    settled(run, sent, attempts=2)
    another_round(run)


@pytest.mark.slow
def test_the_time_limit_is_that_of_one_message_and_the_others_go_on(federation: Federation, isolation: str) -> None:
    run = federation.run(time_limit=1.0)
    sent = batch(federation, run, "train.hang")
    site = serve(federation, isolation)
    process = in_the_midst(site, run, "hangs")

    error = run.error(sent[VICTIM])

    assert error.code == ErrorCode.TIME_LIMIT
    assert f"on {VICTIM} after 1 s" in str(error.reason)
    assert run.wait_for(sent[VICTIM]).attempt == 1
    assert {node: run.metrics(sent[node])["count"] for node in OTHERS} == dict.fromkeys(OTHERS, 1)
    assert all(run.wait_for(sent[node]).attempt == 1 for node in OTHERS)
    assert sorted(lines(run, "runs")) == OTHERS
    wait_until(lambda: processes.gone(process), "the hung process is gone")
    another_round(run, 2, OTHERS)
    another_round(run, 1, [VICTIM])


@pytest.mark.slow
def test_a_message_that_always_kills_is_answered_after_its_last_try_and_the_others_as_ever(
    federation: Federation, isolation: str
) -> None:
    run = federation.run(max_deliveries=2)
    sent = batch(federation, run, "train.die", times=99)
    serve(federation, isolation)

    error = run.error(sent[VICTIM])

    assert error.code in (ErrorCode.CLIENT_APP_CRASHED, ErrorCode.MAX_DELIVERIES)
    assert len(lines(run, "dies")) == 2
    assert {node: run.metrics(sent[node])["count"] for node in OTHERS} == dict.fromkeys(OTHERS, 1)
    assert all(run.wait_for(sent[node]).attempt == 1 for node in OTHERS)
    assert sorted(lines(run, "runs")) == OTHERS
    another_round(run, 1, [VICTIM])


@pytest.mark.slow
def test_a_stopped_run_ends_within_two_seconds_and_begins_nothing_more(federation: Federation, isolation: str) -> None:
    run, other = federation.run(), federation.run()
    batch(federation, run, "train.hang")
    site = serve(federation, isolation)
    process = in_the_midst(site, run, "hangs")

    run.stop()

    wait_until(lambda: processes.gone(process), "the app is gone", timeout=30)
    another_round(other, 1)
    assert lines(run, "runs") == OTHERS[:2]


@pytest.mark.slow
def test_a_killed_service_leaves_no_process_and_its_successor_goes_on(federation: Federation, isolation: str) -> None:
    run = federation.run()
    gate = run.gate()
    sent = batch(federation, run, "train.wait", gate=gate)
    site = serve(federation, isolation)
    in_the_midst(site, run)
    family = psutil.Process(site.service.pid).children(recursive=True)

    site.service.kill()

    serve(federation, isolation, wait=False)
    wait_until(lambda: not any(p.is_running() for p in family), "all its processes are gone")
    wait_until(lambda: len(lines(run, "waits")) == 2, "the app waits again", timeout=30)
    open_gate(gate)
    settled(run, sent, attempts=2)
    another_round(run)


@pytest.mark.slow
def test_what_a_shutdown_cuts_short_does_not_count(federation: Federation, isolation: str) -> None:
    run = federation.run(max_deliveries=1)
    gate = run.gate()
    sent = batch(federation, run, "train.wait", gate=gate)
    site = serve(federation, isolation, grace=0.2)
    in_the_midst(site, run)

    assert site.service.stop() == 0

    assert [node for node in NODES if run.answer(sent[node])] == NODES[:2]
    serve(federation, isolation)
    wait_until(lambda: len(lines(run, "waits")) == 2, "the app waits again", timeout=30)
    open_gate(gate)
    settled(run, sent, attempts=1)


@contextmanager
def crashing(server: RealServer, folder: Path) -> Iterator[Federation]:
    """A federation on a server to kill."""
    with Relay.connect(server.url) as relay:
        made = Federation(server, relay, folder)
        try:
            yield made
        finally:
            made.close()


@pytest.mark.parametrize(
    "isolation", [pytest.param(name, marks=pytest.mark.slow) for name in ("inline", "run", "fork")], indirect=True
)
def test_a_server_that_crashes_is_waited_for_and_nothing_is_run_again(
    own_server: RealServer, tmp_path: Path, isolation: str
) -> None:
    with crashing(own_server, tmp_path) as federation:
        run = federation.run()
        gate = run.gate()
        sent = batch(federation, run, "train.wait", gate=gate)
        site = serve(federation, isolation)
        in_the_midst(site, run)

        own_server.kill()
        open_gate(gate)
        wait_until(lambda: lines(run, "goes"), "the app has finished while the server is away")
        own_server.start()

        settled(run, sent, attempts=1)
        assert len(lines(run, "waits")) == 1
        another_round(run)
        assert site.service.running


@pytest.mark.slow
def test_a_run_that_failed_in_the_midst_goes_on_when_it_is_resumed(federation: Federation, isolation: str) -> None:
    run = federation.run()
    gate = run.gate()
    sent = batch(federation, run, "train.wait", gate=gate)
    site = serve(federation, isolation)
    process = in_the_midst(site, run)

    runs.finish(federation.relay, run.run, run.token, "failed", reason="lost too often")
    wait_until(lambda: processes.gone(process), "the app of a run that has failed is ended")
    assert lines(run, "runs") == OTHERS[:2]
    assert runs.resume_run(federation.relay, run.run) is runs.Step.OK

    wait_until(lambda: len(lines(run, "waits")) == 2, "the app waits again", timeout=30)
    open_gate(gate)
    settled(run, sent, attempts=2)


@pytest.mark.slow
@pytest.mark.parametrize("isolation", ["run"], indirect=True)
def test_what_is_behind_a_slow_message_is_done_by_a_worker_that_is_free(federation: Federation, isolation: str) -> None:
    run = federation.run()
    gate = run.gate()
    sent = batch(federation, run, "train.wait", gate=gate)
    serve(federation, isolation, slots=2)

    assert {node: run.metrics(sent[node])["count"] for node in OTHERS} == dict.fromkeys(OTHERS, 1)

    assert run.answer(sent[VICTIM]) is None
    open_gate(gate)
    settled(run, sent, attempts=1)


# -- the parent's side of a job, alone ---------------------------------------------------------------------------------


@pytest.fixture
def alone(federation: Federation, tmp_path: Path) -> Iterator[tuple[HandRun, Batch, Callable[[int], claims.Claimed]]]:
    """A run, a job with a message for each node, and how its process claims the message of a node."""
    run = federation.run()
    sent = batch(federation, run, "train.wait")
    settings = NodeSettings(HOST, virtual=len(NODES), redis_url=federation.server.url, cache_dir=tmp_path / "cache")
    work = VirtualWork(settings)
    entries = {
        node: str(federation.relay.redis.xrange(federation.relay.keys.inbox(node))[0][0].decode())  # type: ignore[index, union-attr]
        for node in NODES
    }
    errands = [
        Errand(node, run.run, entries[node], sent[node], claims.new_token(), "train.wait", "1", "w") for node in NODES
    ]

    def claim(number: int) -> claims.Claimed:
        e = errands[number]
        return claims.claim(federation.relay, e.node, e.run, e.entry, e.message, e.token, lease=1.0, worker="w")

    yield run, Batch(work, "job", run.run, errands, None), claim
    work.renewals.close()
    work.relay.close()


def test_the_message_under_way_is_renewed_although_one_before_it_was_refused_and_freed(
    alone: tuple[HandRun, Batch, Callable[[int], claims.Claimed]],
) -> None:
    run, job, claim = alone
    # The first one's turn came while another worker held it, which is dead by now.
    assert claim(1).outcome is claims.Claim.OK
    message = job.parts[1].errand.message
    before = run.claim(message)
    assert before is not None

    assert job.renew() is Verdict.OK

    after = run.claim(message)
    assert after is not None
    assert after.lease_end > before.lease_end


def test_a_hint_that_the_server_does_not_take_is_none(own_server: RealServer) -> None:
    with Relay.connect(own_server.url, retries=0) as relay:
        own_server.stop()

        give_back(relay, HOST, "job")
