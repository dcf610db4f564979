"""What no order of calls brings about, or hardly ever, but a step refuses all the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fedq.apps.digest import digest_of
from fedq.apps.error import Error, ErrorCode
from fedq.relay import claims, cleanup, events, journal, messages, nodes, objects, runs, scripts
from fedq.relay.claims import Claim, Commit, Renew
from fedq.relay.contexts import KEPT_VERSIONS
from fedq.relay.errors import Fenced, RelayFull, RelayUnavailable, RunOver
from fedq.relay.keys import GROUP
from fedq.relay.messages import Answered, Push, Reason
from fedq.relay.runs import Step
from tests.relay.conftest import Steps


def test_a_commit_out_of_turn_is_refused(steps: Steps) -> None:
    m = steps.pushed("a")
    steps.claim("a", m)
    steps.relay.redis.zadd(steps.relay.keys.order("a", steps.run), {"an earlier one": 0})
    assert steps.commit("a", m).outcome is Commit.SUPERSEDED
    assert steps.answered("a", m) is None
    steps.relay.redis.zrem(steps.relay.keys.order("a", steps.run), "an earlier one")
    assert steps.commit("a", m).outcome is Commit.COMMITTED


def test_a_commit_by_way_of_another_messages_entry_is_refused(steps: Steps) -> None:
    m, other = steps.pushed("a"), steps.pushed("a")
    steps.claim("a", m)
    assert steps.commit("a", replace(m, entry=other.entry)).outcome is Commit.SUPERSEDED
    assert steps.answered("a", m) is None
    assert [left.message_id for left in steps.inbox("a")] == [m.message_id, other.message_id]
    assert steps.commit("a", m).outcome is Commit.COMMITTED


def test_an_attempt_that_never_was_is_not_given_back(steps: Steps) -> None:
    m = steps.pushed("a")
    steps.relay.redis.hset(steps.relay.keys.claims("a"), m.message_id, "0|w-1|0|")
    assert claims.release(steps.relay, "a", m.message_id, "w-1", counts=False)
    assert claims.read_claims(steps.relay, "a")[m.message_id].attempt == 0


def lives(steps: Steps, digest: str) -> set[int]:
    """The remaining seconds of an array's keys; -1 for ever, -2 where there is none."""
    keys = steps.relay.keys
    return {
        steps.relay.redis.ttl(key) for key in (keys.obj(digest), keys.obj_chunk(digest, 0), keys.obj_owners(digest))
    }


def test_an_uploaded_app_goes_by_itself_unless_a_run_needs_it(steps: Steps) -> None:
    app = b"app" * 100
    digest = digest_of(app)
    objects.upload_bundle(steps.relay, {digest: app})
    assert all(0 < life <= objects.UNFINISHED_TTL for life in lives(steps, digest))
    run = steps.submit(client_bundle=digest)
    assert lives(steps, digest) == {-1}
    runs.stop_run(steps.relay, run)
    cleanup.remove_run(steps.relay, run)
    assert lives(steps, digest) == {-2}


def test_an_app_that_two_runs_need_stays_for_the_second_whoever_uploads_it_again(steps: Steps) -> None:
    app = b"shared" * 100
    digest = digest_of(app)
    objects.upload_bundle(steps.relay, {digest: app})
    first, second = steps.submit(client_bundle=digest), steps.submit(client_bundle=digest)
    objects.upload_bundle(steps.relay, {digest: app})
    runs.stop_run(steps.relay, first)
    cleanup.remove_run(steps.relay, first)
    assert lives(steps, digest) == {-1}
    runs.stop_run(steps.relay, second)
    cleanup.remove_run(steps.relay, second)
    # Somebody is about to submit it once more; if that never happens, it goes by itself.
    assert all(0 < life <= objects.UNFINISHED_TTL for life in lives(steps, digest))


def test_what_a_message_names_stays_when_the_app_of_the_same_bytes_goes(steps: Steps) -> None:
    data = b"both" * 3000
    digest = digest_of(data)
    objects.upload_bundle(steps.relay, {digest: data})
    run = steps.submit(client_bundle=digest)
    objects.upload_bundle(steps.relay, {digest: data})
    objects.upload_shared(steps.relay, steps.run, steps.token, "0", {digest: data})
    steps.push("a", objects=(digest,))
    runs.stop_run(steps.relay, run)
    cleanup.remove_run(steps.relay, run)
    assert lives(steps, digest) == {-1}


def test_a_push_keeps_what_was_only_an_upload(steps: Steps) -> None:
    data = b"z" * 9000
    digest = digest_of(data)
    objects.upload_bundle(steps.relay, {digest: data})
    objects.upload_shared(steps.relay, steps.run, steps.token, "0", {digest: data})
    steps.push("a", objects=(digest,))
    assert lives(steps, digest) == {-1}


def test_a_message_is_not_given_up_before_its_limit_is_reached(steps: Steps) -> None:
    driver = Steps(steps.relay, token="limited")
    driver.start(max_deliveries=2)
    m = driver.pushed("a")
    args = (steps.relay, driver.run, "a", m.entry, m.message_id, Reason.EXHAUSTED, Error(ErrorCode.MAX_DELIVERIES))
    assert messages.answer(*args) is Answered.NOT_SO
    for token in ("w-1", "w-2"):
        driver.claim("a", m, token)
        assert messages.answer(*args) is Answered.NOT_SO
        claims.release(steps.relay, "a", m.message_id, token, counts=True)
    assert messages.answer(*args) is Answered.ANSWERED


def test_a_run_without_a_limit_gives_no_message_up(steps: Steps) -> None:
    driver = Steps(steps.relay, token="unlimited")
    driver.start(max_deliveries=0)
    m = driver.pushed("a")
    args = (steps.relay, driver.run, "a", m.entry, m.message_id, Reason.EXHAUSTED, Error(ErrorCode.MAX_DELIVERIES))
    assert messages.answer(*args) is Answered.NOT_SO


def save(steps: Steps, at: int, data: bytes, token: str = "") -> Step:
    return runs.save_checkpoint(steps.relay, steps.run, token or steps.token, at, (data, ())).outcome


def test_a_checkpoint_is_repeated_only_by_who_has_just_written_it(steps: Steps) -> None:
    assert save(steps, 0, b"same") is Step.OK
    assert save(steps, 0, b"same") is Step.OK
    assert save(steps, 1, b"same") is Step.OK
    assert save(steps, 0, b"same") is Step.STALE
    runs.release_run(steps.relay, steps.run, steps.token)
    runs.claim_run(steps.relay, steps.run, "app-2")
    assert save(steps, 1, b"same", "app-2") is Step.STALE


def test_nothing_is_written_for_a_run_that_is_over(steps: Steps) -> None:
    relay, run, token = steps.relay, steps.run, steps.token
    m = steps.pushed("a")
    runs.stop_run(relay, run)
    data = {digest_of(b"late"): b"late"}
    before = {key: relay.redis.dump(key) for key in relay.redis.keys("*")}
    assert steps.push("a").outcome is Push.STOPPED
    assert steps.claim("a", m).outcome is Claim.STOPPED
    assert save(steps, 0, b"late") is Step.STOPPED
    assert events.emit(relay, run, token, 0, 1, "round", {}).outcome is Step.OVER
    assert runs.renew_run(relay, run, token) is Step.OVER
    assert runs.claim_run(relay, run, "app-2").outcome is Step.OVER
    assert not events.note(relay, run, token, [("log", {})])
    assert runs.set_detail(relay, run, "late") is Step.OVER
    assert not events.append_log(relay, "a", run, [{"text": "late"}])
    with pytest.raises(RunOver):
        journal.record(relay, run, token, 0, "receive:0", "late")
    with pytest.raises(RunOver):
        objects.upload_shared(relay, run, token, "0", data)
    with pytest.raises(RunOver):
        objects.upload_node(relay, "a", run, m.message_id, data)
    assert {key: relay.redis.dump(key) for key in relay.redis.keys("*")} == before


def test_what_a_run_waits_for_is_shown_and_makes_no_run_of_one_that_was_removed(steps: Steps) -> None:
    assert runs.set_detail(steps.relay, steps.run, "waiting for a slot") is Step.OK
    assert runs.run_info(steps.relay, steps.run).detail == "waiting for a slot"
    assert runs.set_detail(steps.relay, steps.run + 1, "waiting for a slot") is Step.OVER
    assert not steps.relay.redis.exists(steps.relay.keys.run(steps.run + 1))


def test_an_attempt_that_was_overtaken_writes_nothing(steps: Steps) -> None:
    relay, run, old = steps.relay, steps.run, steps.token
    m = steps.pushed("a")
    steps.claim("a", m)
    steps.commit("a", m)
    runs.release_run(relay, run, old)
    runs.claim_run(relay, run, "app-2")
    data = {digest_of(b"late"): b"late"}
    before = {key: relay.redis.dump(key) for key in relay.redis.keys("*")}
    assert steps.push("a").outcome is Push.FENCED
    assert save(steps, 0, b"late") is Step.FENCED
    assert runs.free(relay, run, old, [m.message_id]) == 0
    assert events.emit(relay, run, old, 0, 1, "round", {}).outcome is Step.FENCED
    assert runs.renew_run(relay, run, old) is Step.FENCED
    assert runs.finish(relay, run, old, "finished") is Step.FENCED
    assert not events.note(relay, run, old, [("log", {})])
    with pytest.raises(Fenced):
        journal.record(relay, run, old, 0, "receive:0", "late")
    with pytest.raises(Fenced):
        objects.upload_shared(relay, run, old, "0", data)
    assert {key: relay.redis.dump(key) for key in relay.redis.keys("*")} == before


def test_what_a_call_gave_is_noted_once_per_checkpoint(steps: Steps) -> None:
    assert journal.record(steps.relay, steps.run, steps.token, 0, "receive:0", "first").value == "first"
    assert journal.record(steps.relay, steps.run, steps.token, 0, "receive:0", "second").value == "first"
    assert save(steps, 0, b"state") is Step.OK
    assert journal.read(steps.relay, steps.run) == {}
    with pytest.raises(Fenced):
        journal.record(steps.relay, steps.run, steps.token, 0, "receive:0", "stale")
    assert journal.record(steps.relay, steps.run, steps.token, 1, "receive:0", "third").value == "third"


def test_a_note_and_an_event_are_a_new_revision_each(steps: Steps) -> None:
    before = runs.run_info(steps.relay, steps.run).revision
    noted = journal.record(steps.relay, steps.run, steps.token, 0, "receive:0", "first")
    told = [events.emit(steps.relay, steps.run, steps.token, 0, number, "round", {}) for number in (1, 1, 2)]
    assert noted.revision == before + 1
    assert [event.revision - noted.revision for event in told] == [1, 1, 2]


def test_attempts_count_anew_from_each_checkpoint(steps: Steps) -> None:
    driver = Steps(steps.relay, token="app-1")
    driver.start(max_attempts=2)

    def another(token: str) -> Step:
        runs.release_run(steps.relay, driver.run, driver.token)
        driver.token = token
        return runs.claim_run(steps.relay, driver.run, token).outcome

    assert another("app-2") is Step.OK
    assert save(driver, 0, b"one") is Step.OK
    assert another("app-3") is Step.OK
    assert another("app-4") is Step.EXHAUSTED


def test_a_run_whose_lease_has_lapsed_can_be_claimed_and_no_longer_waits(steps: Steps) -> None:
    run = steps.relay.keys.run(steps.run)
    assert runs.claim_run(steps.relay, steps.run, "app-2").outcome is Step.BUSY
    steps.relay.redis.hset(run, mapping={"lease": 1, "detail": "no free slot"})
    assert runs.claim_run(steps.relay, steps.run, "app-2").outcome is Step.OK
    assert steps.relay.redis.hget(run, "detail") is None


def test_a_role_is_taken_from_the_dead_and_from_nobody_else(steps: Steps) -> None:
    key = steps.relay.keys.housekeeper()
    assert nodes.take_lease(steps.relay, key, "p", lease=60).held
    assert nodes.take_lease(steps.relay, key, "q", lease=60).holder == "p"
    assert nodes.take_lease(steps.relay, key, "q", lease=60, dead="r").holder == "p"
    assert steps.relay.call("beat", [key], ["q", 0, 0, ""]) == [b"OK"]
    assert nodes.take_lease(steps.relay, key, "q", lease=60).holder == "p"
    assert nodes.take_lease(steps.relay, key, "q", lease=60, dead="p").held
    assert steps.relay.call("beat", [key], ["anybody", 60_000, 1, ""]) == [b"OK"]
    nodes.drop_lease(steps.relay, key, "anybody")
    assert not steps.relay.redis.exists(key)


def test_an_extended_lease_begins_anew_and_brings_the_heartbeat(steps: Steps) -> None:
    relay, keys = steps.relay, steps.relay.keys
    lease, heartbeat = keys.node_dispatcher("a"), keys.node_alive("a")
    relay.redis.delete(heartbeat)

    assert nodes.take_dispatcher(relay, "a", "p", lease=30).held
    assert not relay.redis.exists(heartbeat)
    assert nodes.take_dispatcher(relay, "a", "p", lease=90, alive=60).held
    assert 60_000 < relay.redis.pttl(lease) <= 90_000
    assert 30_000 < relay.redis.pttl(heartbeat) <= 60_000
    assert nodes.take_dispatcher(relay, "a", "p", lease=90, alive=120).held
    assert 60_000 < relay.redis.pttl(heartbeat) <= 120_000

    relay.redis.delete(heartbeat)
    assert nodes.take_dispatcher(relay, "a", "q", alive=60).holder == "p"
    assert not relay.redis.exists(heartbeat)
    assert relay.call("beat", [lease, heartbeat], ["p", 0, 0, "", 60_000]) == [b"OK"]
    assert not relay.redis.exists(lease, heartbeat)


def test_nodes_are_listed_with_what_they_say_of_themselves(steps: Steps) -> None:
    said = nodes.NodeInfo({"site": "north"}, slots=2, isolation="run", host="h", pid=7, details={"fedq": "1"})
    nodes.register(steps.relay, "c", said)
    nodes.register(steps.relay, "d", nodes.NodeInfo({"site": "south"}))
    nodes.add(steps.relay, "e")
    nodes.beat(steps.relay, "c")

    listed = {state.name: state for state in nodes.list_nodes(steps.relay)}
    assert list(listed) == ["a", "b", "c", "d", "e"]
    assert listed["c"] == nodes.NodeState("c", True, said)
    assert listed["d"] == nodes.NodeState("d", False, nodes.NodeInfo({"site": "south"}))
    assert listed["e"] == nodes.NodeState("e", False, nodes.NodeInfo(slots=0, isolation=""))
    assert nodes.list_nodes(steps.relay, {"site": "south"}) == [listed["d"]]
    assert nodes.roster(steps.relay, {"site": "north"}) == ["c"]
    assert nodes.roster(steps.relay, {"site": "south"}) == []
    assert nodes.roster(steps.relay, registered=True) == list(listed)
    assert "c" in nodes.roster(steps.relay)
    assert "d" not in nodes.roster(steps.relay)
    (brief,) = nodes.list_nodes(steps.relay, {"site": "north"}, details=False)
    assert brief.info.details == {}


def test_a_server_that_has_forgotten_the_steps_is_told_all_of_them_by_the_first_who_misses_one(
    real_steps: Steps,
) -> None:
    redis = real_steps.relay.redis
    redis.script_flush()
    nodes.beat(real_steps.relay, "a")
    # Nodes may not load steps: those that only they call have to come with those that SuperLinks call.
    assert all(redis.script_exists(*map(scripts.digest, scripts.names())))


@pytest.mark.parametrize("alone", [True, False])
def test_steps_that_are_lost_again_as_soon_as_they_are_loaded_are_waited_for(
    real_steps: Steps, monkeypatch: pytest.MonkeyPatch, *, alone: bool
) -> None:
    relay, load, losses = real_steps.relay, scripts.load, 0

    def lose(client: Any) -> None:
        nonlocal losses
        load(client)
        if losses:
            losses -= 1
            client.script_flush()

    def beat() -> None:
        if alone:
            nodes.beat(relay, "a")
        else:
            relay.together(scripts.StepCall("beat", [relay.keys.node_alive("a")], ["1", 1000, 1, ""]), ("PING",))

    monkeypatch.setattr(scripts, "load", lose)
    relay.redis.script_flush()
    losses = 9
    with pytest.raises(RelayUnavailable, match="the server has lost the step 'beat' 3 times"):
        beat()
    losses = 2
    beat()
    assert nodes.online(relay, ["a"]) == {"a": True}


def test_what_must_go_through_when_the_memory_is_full_goes_through(real_steps: Steps) -> None:
    steps = real_steps
    relay, redis = steps.relay, steps.relay.redis
    cancelled = Error(ErrorCode.CANCELLED, "")
    first, second, third = (steps.pushed("a") for _ in range(3))
    spare = steps.submit()
    # As every SuperLink does at its start: a full server learns no step.
    scripts.load(redis)
    redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(RelayFull):
            steps.push("a")
        nodes.beat(relay, "a")
        relay.redis.delete(relay.keys.node_alive("a"))
        for _ in ("taken", "extended"):
            assert nodes.take_dispatcher(relay, "a", "p", alive=60).held
            assert relay.redis.delete(relay.keys.node_alive("a"))
        nodes.beat(relay, "a")
        assert steps.claim("a", first).outcome is Claim.OK
        assert claims.renew(relay, "a", steps.run, first.entry, first.message_id, "w-1") is Renew.OK
        assert claims.release(relay, "a", first.message_id, "w-1", counts=False)
        assert steps.claim("a", first).outcome is Claim.OK
        assert steps.commit("a", first).outcome is Commit.COMMITTED
        args = (relay, steps.run, "a", second.entry, second.message_id, Reason.CANCELLED, cancelled)
        assert messages.answer(*args) is Answered.ANSWERED
        assert runs.renew_run(relay, steps.run, steps.token) is Step.OK
        for number in (1, 2):
            assert journal.record(relay, steps.run, steps.token, 0, f"receive:{number}", "it").value == "it"
            assert events.emit(relay, steps.run, steps.token, 0, number, "round", {}).outcome is Step.OK
        assert save(steps, 0, b"state") is Step.OK
        assert runs.free(relay, steps.run, steps.token, [first.message_id, second.message_id]) == 2
        assert runs.claim_run(relay, spare, "other").outcome is Step.OK
        assert runs.release_run(relay, spare, "other") is Step.OK
        assert runs.finish(relay, spare, "", "stopped") is Step.OK
        assert runs.finish(relay, steps.run, steps.token, "finished") is Step.OK
        assert steps.claim("a", third).outcome is Claim.STOPPED
        assert cleanup.clean_run(relay, steps.run)
    finally:
        redis.config_set("maxmemory", 0)


def test_a_clean_up_goes_in_small_steps_each_of_which_frees_arrays(steps: Steps) -> None:
    keys = steps.relay.keys
    digests = []
    for turn in range(3):
        m = steps.pushed("a")
        data = bytes([turn]) * 9000
        digests.append(digest_of(data))
        steps.claim("a", m, f"w-{turn}")
        objects.upload_node(steps.relay, "a", steps.run, m.message_id, {digests[-1]: data})
        steps.commit("a", m, f"w-{turn}", objects=(digests[-1],), context=None)
    events.append_log(steps.relay, "a", steps.run, [{"text": "one"}, {"text": "two"}])
    runs.stop_run(steps.relay, steps.run)
    names = [keys.run(steps.run), keys.inbox("a"), keys.claims("a"), keys.order("a", steps.run)]
    names += [keys.replies("a", steps.run), keys.node_ctx("a", steps.run), keys.node_objs("a", steps.run)]
    names += [keys.log("a", steps.run), keys.events(steps.run)]
    args = [steps.run, keys.node("a"), GROUP, keys.node_alive("a"), 1, 1000]
    for left in (2, 1, 0):
        assert steps.relay.call("clean_node", names, args) == [b"MORE"]
        assert [bool(steps.relay.redis.exists(keys.node_obj("a", d))) for d in digests].count(True) == left
    outcomes = [steps.relay.call("clean_node", names, args) for _ in range(3)]
    assert outcomes == [[b"MORE"], [b"MORE"], [b"DONE"]]
    told = [e.data["text"] for e in events.read_events(steps.relay, steps.run) if e.kind == "log"]
    assert told == ["one", "two"]


def test_the_arrays_of_a_context_go_with_its_version(steps: Steps) -> None:
    digests = []
    for turn in range(KEPT_VERSIONS + 1):
        m = steps.pushed("a")
        data = bytes([turn]) * 9000
        digests.append(digest_of(data))
        steps.claim("a", m, f"w-{turn}")
        objects.upload_node(steps.relay, "a", steps.run, m.message_id, {digests[-1]: data})
        steps.commit("a", m, f"w-{turn}", context=(b"state", (digests[-1],)))
    there = [bool(steps.relay.redis.exists(steps.relay.keys.node_obj("a", d))) for d in digests]
    assert there == [False] + [True] * KEPT_VERSIONS
    index = steps.relay.redis.smembers(steps.relay.keys.node_objs("a", steps.run))
    assert index == {d.encode() for d in digests[1:]}


def test_the_clean_up_finds_the_arrays_of_a_context_that_another_run_had_uploaded(steps: Steps) -> None:
    other = Steps(steps.relay, token="other")
    other.start()
    data = b"theirs" * 3000
    digest = digest_of(data)
    theirs = other.pushed("a")
    other.claim("a", theirs, "w-1")
    objects.upload_node(steps.relay, "a", other.run, theirs.message_id, {digest: data})
    other.commit("a", theirs, "w-1", objects=(digest,), context=None)
    m = steps.pushed("a")
    steps.claim("a", m, "w-2")
    assert steps.commit("a", m, "w-2", context=(b"state", (digest,))).outcome is Commit.COMMITTED
    for driver in (other, steps):
        assert steps.relay.redis.exists(steps.relay.keys.node_obj("a", digest))
        runs.stop_run(steps.relay, driver.run)
        cleanup.clean_run(steps.relay, driver.run)
    assert not steps.relay.redis.keys(steps.relay.keys.node_obj("a", digest) + "*")


def test_an_event_from_before_the_last_checkpoint_is_not_told_again(steps: Steps) -> None:
    def emit(checkpoint: int, number: int) -> Step:
        data = [checkpoint, number]
        return events.emit(steps.relay, steps.run, steps.token, checkpoint, number, "round", data).outcome

    assert [emit(0, 1), emit(1, 1), emit(0, 5), emit(1, 1), emit(1, 2)] == [
        *(Step.OK, Step.OK, Step.SEEN, Step.SEEN, Step.OK)
    ]
    told = [e.data["value"] for e in events.read_events(steps.relay, steps.run) if e.kind == "round"]
    assert told == [[0, 1], [1, 1], [1, 2]]


def test_the_clean_up_of_a_run_leaves_the_arrays_that_another_runs_answer_names(steps: Steps) -> None:
    other = Steps(steps.relay, token="other")
    other.start()
    data = b"both" * 3000
    digest = digest_of(data)
    for driver in (steps, other):
        m = driver.pushed("a")
        driver.claim("a", m, driver.token)
        objects.upload_node(driver.relay, "a", driver.run, m.message_id, {digest: data})
        driver.commit("a", m, driver.token, objects=(digest,), context=None)
    runs.stop_run(steps.relay, steps.run)
    assert cleanup.clean_run(steps.relay, steps.run)
    assert objects.fetch_node(steps.relay, "a", [digest])[digest] == data


def test_an_attempt_that_is_given_back_does_not_count(steps: Steps) -> None:
    driver = Steps(steps.relay, token="app-1")
    driver.start(max_attempts=1)
    assert runs.release_run(steps.relay, driver.run, "app-1", counts=False) is Step.OK
    assert runs.claim_run(steps.relay, driver.run, "app-2").outcome is Step.OK
    assert runs.release_run(steps.relay, driver.run, "app-2", counts=True) is Step.OK
    assert runs.claim_run(steps.relay, driver.run, "app-3").outcome is Step.EXHAUSTED


def test_a_late_repeat_of_a_submit_leaves_its_upload_to_expire(steps: Steps) -> None:
    app = b"late" * 300
    digest = digest_of(app)
    spec = runs.RunSpec(client_token="the same", client_bundle=digest)
    objects.upload_bundle(steps.relay, {digest: app})
    run = runs.submit(steps.relay, spec)
    runs.stop_run(steps.relay, run)
    cleanup.remove_run(steps.relay, run)
    objects.upload_bundle(steps.relay, {digest: app})
    assert runs.submit(steps.relay, spec) == run
    assert all(0 < life <= objects.UNFINISHED_TTL for life in lives(steps, digest))


def test_a_run_does_not_finish_with_arrays_that_are_not_there(steps: Steps) -> None:
    data = b"result" * 2000
    digest = digest_of(data)
    result = (b"result", (digest,))
    assert runs.finish(steps.relay, steps.run, steps.token, "finished", result=result) is Step.MISSING
    assert not runs.run_info(steps.relay, steps.run).over
    objects.upload_shared(steps.relay, steps.run, steps.token, "result", {digest: data})
    assert runs.finish(steps.relay, steps.run, steps.token, "finished", result=result) is Step.OK
    assert lives(steps, digest) == {-1}


def test_a_claim_that_was_given_back_is_nobodys(steps: Steps) -> None:
    m = steps.pushed("a")
    steps.claim("a", m)
    claims.release(steps.relay, "a", m.message_id, "w-1", counts=True)
    for token in ("w-1", "w-2"):
        renewed = claims.renew(steps.relay, "a", steps.run, m.entry, m.message_id, token)
        assert renewed is Renew.UNCLAIMED


def test_the_clean_up_at_the_superlink_goes_in_small_steps_too(steps: Steps) -> None:
    k, run = steps.relay.keys, steps.run
    blobs = {digest_of(data): data for data in (b"1" * 9000, b"2" * 9000, b"3" * 9000)}
    objects.upload_shared(steps.relay, run, steps.token, "0", blobs)
    runs.stop_run(steps.relay, run)
    names = [k.run(run), k.run_objs(run), k.sent(run), k.deadlines(run), k.journal(run), k.run_nodes(run)]
    names += [k.run_ctx(run), k.alive_runs()]
    assert steps.relay.call("clean_run", names, [run, k.obj(""), 2, 0]) == [b"MORE"]
    assert sum(steps.relay.redis.exists(k.obj(digest)) for digest in blobs) == 1
    assert steps.relay.call("clean_run", names, [run, k.obj(""), 2, 0]) == [b"DONE"]
