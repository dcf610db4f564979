"""Somebody starts runs, notices what has lapsed, and tidies up; one at a time, and whatever becomes of the server."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterator

import pytest

from fedq.apps import ErrorCode
from fedq.apps.wire import decode_error
from fedq.relay import links, messages, nodes, runs
from fedq.relay.claims import new_token
from fedq.relay.connection import Relay
from fedq.relay.errors import RelayError, RelayReadOnly, RelayUnavailable
from fedq.relay.host import process_name
from fedq.relay.housekeeping import JOB_PATIENCE, SAY_AGAIN, Housekeeper
from fedq.relay.jobs import FedqQueue, fetch
from fedq.relay.keys import SERVERAPP_QUEUE
from tests.relay.link.conftest import Setting
from tests.relay.link.test_grid_messages import to
from tests.support import RealServer
from tests.support.waiting import wait_until


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


Keep = Callable[..., Housekeeper]


@pytest.fixture
def keep(setting: Setting) -> Iterator[Keep]:
    """Makes housekeepers; ``turn`` is called by the test."""
    made: list[Housekeeper] = []

    def make(slots: int = 2, **options: object) -> Housekeeper:
        relay = setting.stack.enter_context(Relay.connect(setting.url))
        made.append(Housekeeper(relay, slots=slots, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for keeper in made:
        keeper._leave()


def queued(setting: Setting) -> list[str]:
    return FedqQueue(SERVERAPP_QUEUE, setting.relay.redis).get_job_ids()


def lapse(setting: Setting, run: int) -> None:
    """The run is held by an attempt whose process is gone."""
    assert runs.claim_run(setting.relay, run, new_token(), lease=0.02).outcome is runs.Step.OK
    wait_until(lambda: runs.run_info(setting.relay, run).lease < setting.relay.now(), "the lease has lapsed")


def test_a_pending_run_is_enqueued_once(setting: Setting, keep: Keep) -> None:
    run = setting.submitted(name="mine", user="ada")
    keeper = keep()
    for _ in range(3):
        keeper.turn()
    assert queued(setting) == [f"_serverapps_{run}_1"]
    job = fetch(f"_serverapps_{run}_1", setting.relay.redis)
    assert job is not None
    assert job.description == f"ServerApp of run {run} mine for ada, attempt 1"
    assert job.meta == {"kind": "serverapp", "run": run, "attempt": 1, "name": "mine"}


def test_runs_are_started_in_order_as_long_as_there_are_slots(setting: Setting, keep: Keep) -> None:
    first, second, third = (setting.submitted() for _ in range(3))
    keeper = keep(slots=2)
    keeper.turn()
    assert queued(setting) == [f"_serverapps_{first}_1", f"_serverapps_{second}_1"]
    assert runs.run_info(setting.relay, third).detail == "no free slot"
    runs.stop_run(setting.relay, first)
    keeper.turn()
    assert f"_serverapps_{third}_1" in queued(setting)
    assert runs.run_info(setting.relay, third).detail == ""


def silent(setting: Setting, slots: int) -> str:
    """A SuperLink that was killed: it has said nothing for too long, and did not say good-bye."""
    at = int((setting.relay.now() - links.TTL - 1) * 1000)
    setting.relay.redis.hset(setting.relay.keys.links(), "killed", f"{slots}|{at}|1")
    return "killed"


def test_the_slots_of_a_superlink_that_is_silent_do_not_count(setting: Setting, keep: Keep) -> None:
    keeper = keep(slots=0)
    keeper.turn()
    silent(setting, slots=5)
    run = setting.submitted()
    keeper.turn()
    assert runs.run_info(setting.relay, run).detail == "no free slot"


def test_a_superlink_that_was_killed_is_struck_off_though_no_run_asks_for_it(setting: Setting, keep: Keep) -> None:
    name = silent(setting, slots=5)
    assert links.live(setting.relay) == {}
    assert setting.relay.redis.hexists(setting.relay.keys.links(), name)  # who only looks, writes nothing
    keeper = keep(slots=2)
    keeper.turn()
    assert links.live(setting.relay) == {keeper.name: 2}
    assert setting.relay.redis.hkeys(setting.relay.keys.links()) == [keeper.name.encode()]


def test_a_lapsed_lease_counts_only_after_a_lease_period_of_service(setting: Setting, keep: Keep) -> None:
    clock = Clock()
    keeper = keep(clock=clock)
    run = setting.submitted()
    lapse(setting, run)
    keeper.turn()
    clock.now += runs.RUN_LEASE - 1
    keeper.turn()
    assert queued(setting) == []
    clock.now += 2
    keeper.turn()
    assert queued(setting) == [f"_serverapps_{run}_2"]


def test_a_run_that_was_given_back_goes_on_at_once(setting: Setting, keep: Keep) -> None:
    run, token = setting.submitted(), new_token()
    runs.claim_run(setting.relay, run, token)
    keeper = keep()
    keeper.turn()
    assert queued(setting) == []
    runs.release_run(setting.relay, run, token)
    keeper.turn()
    assert queued(setting) == [f"_serverapps_{run}_2"]


def test_a_job_that_came_to_nothing_is_replaced(setting: Setting, keep: Keep) -> None:
    run = setting.submitted()
    clock = Clock()
    keeper = keep(clock=clock)
    keeper.turn()
    # Its worker was killed between taking it and claiming the run.
    setting.relay.redis.delete(FedqQueue(SERVERAPP_QUEUE, setting.relay.redis).key)
    keeper.turn()
    assert queued(setting) == []
    clock.now += JOB_PATIENCE + 1
    keeper.turn()
    assert queued(setting) == [f"_serverapps_{run}_1_2"]


def test_a_run_without_attempts_left_fails_with_the_reason(setting: Setting, keep: Keep) -> None:
    run, token = setting.submitted(max_attempts=1), new_token()
    runs.claim_run(setting.relay, run, token)
    runs.set_detail(setting.relay, run, "killed by SIGKILL")
    runs.release_run(setting.relay, run, token)
    keep().turn()
    info = runs.run_info(setting.relay, run)
    assert info.status == "failed"
    assert info.reason.endswith("was lost each time (max_attempts); the last time: killed by SIGKILL")


def test_a_message_whose_time_is_up_is_answered_without_a_serverapp(setting: Setting, keep: Keep) -> None:
    setting.node("a").hold()
    grid = setting.grid()
    (m,) = grid.push_messages(to(["a"], ttl=0.5))
    keeper = keep()
    assert keeper.turn() < 0.6, "it knows when the message's time is up"

    def answer() -> messages.Answer | None:
        keeper.turn()
        return messages.read_answers(setting.relay, [("a", m)]).get(m)

    answered = wait_until(answer, "it is answered")
    assert decode_error(answered.body).code == ErrorCode.MESSAGE_EXPIRED


def test_an_ended_run_is_cleaned_up(setting: Setting, keep: Keep) -> None:
    node = setting.node("a")
    node.hold()
    grid = setting.grid()
    grid.push_messages(to(["a"]))
    runs.stop_run(setting.relay, grid.run_id)
    keep().turn()
    assert runs.alive_runs(setting.relay) == []
    assert not list(setting.relay.redis.scan_iter(f"{setting.relay.keys.base}*obj:*"))


def test_what_is_kept_of_a_run_goes_after_a_time(setting: Setting, keep: Keep) -> None:
    old, fresh = setting.submitted(), setting.submitted()
    runs.stop_run(setting.relay, old)
    first = keep(retention=3600.0)
    first.turn()
    assert len(runs.list_runs(setting.relay)) == 2
    wait_until(lambda: setting.relay.now() > runs.run_info(setting.relay, old).ended, "some time has passed")
    first._leave()
    keep(retention=0.0).turn()
    assert [info.run_id for info in runs.list_runs(setting.relay)] == [fresh]


def test_one_keeps_house_at_a_time_and_another_takes_over(setting: Setting, keep: Keep) -> None:
    first, second = keep(), keep()
    first.turn()
    second.turn()
    assert (first.held, second.held) == (True, False)
    first._leave()
    second.turn()
    assert second.held


def somebody_dead() -> str:
    """The name of a housekeeper on this host whose process has ended."""
    child = subprocess.Popen(["true"])
    child.wait()
    return f"{process_name(child.pid)}-abcdef"


def test_who_keeps_house_on_this_host_and_is_dead_is_followed_at_once(setting: Setting, keep: Keep) -> None:
    dead = somebody_dead()
    assert nodes.take_lease(setting.relay, setting.relay.keys.housekeeper(), dead, lease=60.0).held
    links.beat(setting.relay, dead, 5)
    keeper = keep()
    keeper.turn()
    assert keeper.held
    assert links.live(setting.relay) == {keeper.name: 2}


def test_a_run_is_looked_at_when_the_lease_of_its_holder_ends_and_not_a_turn_later(
    setting: Setting, keep: Keep
) -> None:
    clock = Clock()
    keeper = keep(clock=clock)
    run = setting.submitted()
    assert runs.claim_run(setting.relay, run, new_token(), lease=0.4).outcome is runs.Step.OK
    assert keeper.turn() <= 0.41
    wait_until(lambda: runs.run_info(setting.relay, run).lease < setting.relay.now(), "the lease has lapsed")
    clock.now += runs.RUN_LEASE - 0.2
    # Until then the holder may only have been unable to renew it.
    assert keeper.turn() == pytest.approx(0.2)
    clock.now += 0.2
    keeper.turn()
    assert queued(setting) == [f"_serverapps_{run}_2"]


@pytest.mark.parametrize("trouble", [RelayReadOnly("no writes here"), RelayUnavailable("closed, or refused")])
def test_a_server_in_trouble_is_told_of_once_and_again_after_a_while(
    keep: Keep, trouble: RelayError, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock, turns = Clock(), 0
    keeper = keep(clock=clock)

    def refused() -> float:
        nonlocal turns
        turns += 1
        if turns == 4:
            clock.now += SAY_AGAIN
        if turns == 5:
            keeper.stop()
        raise trouble

    monkeypatch.setattr(keeper, "turn", refused)
    keeper.run()
    assert turns == 5
    assert caplog.messages == [f"housekeeping: {trouble}; waiting"] * 2


def test_housekeeping_outlives_the_server(own_server: RealServer) -> None:
    with Relay(own_server.url, retries=0) as relay, Relay.connect(own_server.url) as ours:
        keeper = Housekeeper(relay, slots=1)
        thread = threading.Thread(target=keeper.run)
        thread.start()
        try:
            wait_until(lambda: keeper.held, "somebody keeps house")
            own_server.crash()
            run = runs.submit(ours, runs.RunSpec(client_token="t"))
            wait_until(lambda: fetch(f"_serverapps_{run}_1", ours.redis), "the run is started", timeout=20)
        finally:
            keeper.stop()
            thread.join(10)
        assert not thread.is_alive()
        assert ours.redis.exists(ours.keys.links()) == 0, "it has said good-bye"
