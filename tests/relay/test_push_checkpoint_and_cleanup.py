"""A push happens once, a checkpoint frees what it folded, and an ended run leaves only what is kept."""

from __future__ import annotations

from typing import Any

import pytest

from fedq.apps.digest import digest_of
from fedq.relay import claims, cleanup, events, messages, objects, runs
from fedq.relay.errors import RelayError, RunNotFound
from fedq.relay.keys import GROUP
from fedq.relay.messages import Push
from fedq.relay.runs import Step
from tests.relay.conftest import Steps
from tests.support.waiting import wait_until


def blob_of(size: int, fill: int) -> tuple[str, bytes]:
    data = bytes([fill]) * size
    return digest_of(data), data


def test_a_repeated_push_makes_no_second_entry(steps: Steps) -> None:
    first = steps.push("a", "b", call=0)
    again = steps.push("a", "b", call=0)
    assert first.outcome is again.outcome is Push.OK
    assert again.revision > first.revision
    assert len(steps.inbox("a")) == len(steps.inbox("b")) == 1


def test_a_repeated_push_tells_when_it_was_called_first(steps: Steps) -> None:
    first = steps.push("a", call=0)
    assert first.began == first.created
    wait_until(lambda: steps.relay.now() > first.created + 0.001, "the server's clock goes on")
    again = steps.push("a", call=0)
    assert again.began == first.began
    assert again.created > first.created


def test_a_checkpoint_frees_the_answered_messages_that_it_folded(steps: Steps) -> None:
    ids = []
    for turn, node in enumerate(("a", "b", "a")):
        m = steps.pushed(node)
        ids.append(m.message_id)
        if node != "b":
            steps.claim(node, m, f"w-{turn}")
            steps.commit(node, m, f"w-{turn}")
    for token, checkpoint in (("another", 0), (steps.token, 1)):
        runs.save_checkpoint(steps.relay, steps.run, token, checkpoint, (b"state", ()), ids[:2])
        assert set(messages.outstanding(steps.relay, steps.run)) == set(ids)  # refused: nothing is freed
    runs.save_checkpoint(steps.relay, steps.run, steps.token, 0, (b"state", ()), ids[:2])
    assert set(messages.outstanding(steps.relay, steps.run)) == set(ids[1:])


def test_a_checkpoint_stands_where_a_node_has_written_nonsense_over_its_answer(steps: Steps) -> None:
    m = steps.pushed("a")
    steps.claim("a", m)
    steps.commit("a", m)
    steps.relay.redis.hset(steps.relay.keys.out("a", m.message_id), "ptr", "nonsense")
    saved = runs.save_checkpoint(steps.relay, steps.run, steps.token, 0, (b"state", ()), [m.message_id])
    assert (saved.outcome, saved.checkpoint, saved.freed) == (Step.OK, 1, 0)
    assert runs.run_info(steps.relay, steps.run).checkpoint == 1
    with pytest.raises(RelayError):  # whoever frees it is told
        runs.free(steps.relay, steps.run, steps.token, [m.message_id])


def test_a_checkpoint_leaves_many_messages_to_be_freed_later(steps: Steps) -> None:
    ids = []
    for turn in range(3):
        m = steps.pushed("a")
        steps.claim("a", m, f"w-{turn}")
        steps.commit("a", m, f"w-{turn}")
        ids.append(m.message_id)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "FREED_AT_ONCE", 2)
        saved = runs.save_checkpoint(steps.relay, steps.run, steps.token, 0, (b"state", ()), ids)
    assert saved.freed == 2
    assert set(messages.outstanding(steps.relay, steps.run)) == set(ids[2:])
    assert runs.free(steps.relay, steps.run, steps.token, ids) == 1


def test_a_push_repeated_after_its_answer_is_not_sent_again(steps: Steps) -> None:
    m = steps.pushed("a", call=0)
    steps.claim("a", m)
    steps.commit("a", m)
    assert steps.push("a", call=0).outcome is Push.OK
    assert [entry.kind for entry in steps.inbox("a") if entry.kind == "message"] == []


def test_a_call_that_asks_for_something_else_the_second_time_is_refused_before_anything_is_written(
    steps: Steps,
) -> None:
    steps.push("a", call=0, body=b"one")
    before = steps.inbox("a")
    assert steps.push("a", "b", call=0, body=b"two").outcome is Push.MISMATCH
    assert steps.inbox("a") == before
    assert steps.inbox("b") == []


def test_an_unknown_node_refuses_the_whole_push(steps: Steps) -> None:
    refused = steps.push("a", "nobody", "noone")
    assert refused.outcome is Push.UNKNOWN_NODE
    assert refused.detail == ("nobody", "noone")
    assert steps.inbox("a") == []


def test_a_push_that_names_an_incomplete_array_is_refused(steps: Steps) -> None:
    digest, data = blob_of(9 * 1024 * 1024, 1)
    assert steps.push("a", objects=(digest,)).outcome is Push.MISSING
    objects.upload_shared(steps.relay, steps.run, steps.token, "0", {digest: data})
    steps.relay.redis.delete(steps.relay.keys.obj_chunk(digest, 1))
    assert steps.push("a", objects=(digest,)).detail == (digest,)
    assert objects.upload_shared(steps.relay, steps.run, steps.token, "0", {digest: data}) > 0
    assert steps.push("a", objects=(digest,)).outcome is Push.OK
    assert objects.fetch_shared(steps.relay, [digest])[digest] == data
    assert steps.relay.redis.ttl(steps.relay.keys.obj_chunk(digest, 2)) == -1


def test_what_is_there_is_not_uploaded_again(steps: Steps) -> None:
    digest, data = blob_of(10_000, 2)
    assert objects.upload_shared(steps.relay, steps.run, steps.token, "0", {digest: data}) == 10_000
    assert objects.upload_shared(steps.relay, steps.run, steps.token, "0", {digest: data}) == 0


def test_an_older_attempt_of_the_serverapp_is_fenced_everywhere(steps: Steps) -> None:
    assert runs.claim_run(steps.relay, steps.run, "app-2").outcome is Step.BUSY
    assert runs.release_run(steps.relay, steps.run, steps.token) is Step.OK
    claimed = runs.claim_run(steps.relay, steps.run, "app-2")
    assert (claimed.outcome, claimed.attempt) == (Step.OK, 2)
    assert steps.push("a").outcome is Push.FENCED
    assert runs.save_checkpoint(steps.relay, steps.run, steps.token, 0, (b"old", ())).outcome is Step.FENCED
    assert events.emit(steps.relay, steps.run, steps.token, 0, 1, "round", {}).outcome is Step.FENCED
    assert runs.finish(steps.relay, steps.run, steps.token, "finished") is Step.FENCED
    assert runs.renew_run(steps.relay, steps.run, steps.token) is Step.FENCED


def test_a_run_stops_being_claimed_after_its_attempts(steps: Steps) -> None:
    steps.end()
    run = steps.submit(max_attempts=2)
    for attempt in (1, 2):
        assert runs.claim_run(steps.relay, run, f"app-{attempt}").attempt == attempt
        runs.release_run(steps.relay, run, f"app-{attempt}")
    assert runs.claim_run(steps.relay, run, "app-3").outcome is Step.EXHAUSTED


def test_a_checkpoint_holds_the_context_and_its_repeat_changes_nothing(steps: Steps) -> None:
    m = steps.pushed("a")
    steps.claim("a", m)
    steps.commit("a", m)
    saved = runs.save_checkpoint(steps.relay, steps.run, steps.token, 0, (b"state", ()), [m.message_id])
    again = runs.save_checkpoint(steps.relay, steps.run, steps.token, 0, (b"state", ()), [m.message_id])
    assert (saved.outcome, saved.checkpoint) == (again.outcome, again.checkpoint) == (Step.OK, 1)
    assert runs.save_checkpoint(steps.relay, steps.run, steps.token, 0, (b"other", ())).outcome is Step.STALE
    runs.release_run(steps.relay, steps.run, steps.token)
    resumed = runs.claim_run(steps.relay, steps.run, "app-2")
    assert resumed.checkpoint == 1
    assert resumed.context is not None
    assert resumed.context.data == b"state"
    assert resumed.context.free == (m.message_id,)


def test_a_push_of_an_older_checkpoint_is_refused(steps: Steps) -> None:
    runs.save_checkpoint(steps.relay, steps.run, steps.token, 0, (b"state", ()))
    assert steps.push("a").outcome is Push.STALE
    steps.checkpoint = 1
    assert steps.push("a").outcome is Push.OK


def test_freeing_takes_answers_pointers_and_arrays_but_no_unanswered_message(steps: Steps) -> None:
    out_digest, out = blob_of(9000, 3)
    in_digest, data = blob_of(9000, 4)
    objects.upload_shared(steps.relay, steps.run, steps.token, "0", {out_digest: out})
    steps.push("a", "b", objects=(out_digest,))
    m, n = steps.inbox("a")[0], steps.inbox("b")[0]
    steps.claim("a", m)
    objects.upload_node(steps.relay, "a", steps.run, m.message_id, {in_digest: data})
    steps.commit("a", m, objects=(in_digest,), context=None)
    assert runs.free(steps.relay, steps.run, steps.token, [m.message_id, n.message_id]) == 1
    assert runs.free(steps.relay, steps.run, steps.token, [m.message_id, n.message_id]) == 0
    keys = steps.relay.keys
    assert steps.answered("a", m) is None
    assert steps.pointers("a") == 0
    assert not steps.relay.redis.exists(keys.node_obj(("a"), in_digest), keys.node_obj_chunk("a", in_digest, 0))
    assert steps.relay.redis.exists(keys.obj(out_digest))
    steps.claim("b", n)
    steps.commit("b", n)
    runs.free(steps.relay, steps.run, steps.token, [n.message_id])
    assert not steps.relay.redis.exists(
        keys.obj(out_digest), keys.obj_chunk(out_digest, 0), keys.obj_owners(out_digest)
    )
    assert messages.outstanding(steps.relay, steps.run) == {}


def test_an_array_that_two_messages_named_stays_until_both_are_freed(steps: Steps) -> None:
    digest, data = blob_of(9000, 5)
    ids = []
    for turn in range(2):
        m = steps.pushed("a")
        steps.claim("a", m, f"w-{turn}")
        objects.upload_node(steps.relay, "a", steps.run, m.message_id, {digest: data})
        steps.commit("a", m, f"w-{turn}", objects=(digest,), context=None)
        ids.append(m.message_id)
    runs.free(steps.relay, steps.run, steps.token, ids[:1])
    assert objects.fetch_node(steps.relay, "a", [digest])[digest] == data
    runs.free(steps.relay, steps.run, steps.token, ids[1:])
    assert not steps.relay.redis.exists(steps.relay.keys.node_obj("a", digest))


def test_an_event_appears_once_however_often_it_is_emitted(steps: Steps) -> None:
    for number in (1, 2, 2, 1, 3):
        events.emit(steps.relay, steps.run, steps.token, 0, number, "round", {"round": number})
    rounds = [e.data["round"] for e in events.read_events(steps.relay, steps.run) if e.kind == "round"]
    assert rounds == [1, 2, 3]


def test_a_repeated_submit_finds_its_run(steps: Steps) -> None:
    spec = runs.RunSpec(client_token="the-same", name="once")
    assert runs.submit(steps.relay, spec) == runs.submit(steps.relay, spec)


def test_a_submit_whose_app_is_not_there_makes_no_run(steps: Steps) -> None:
    before = runs.alive_runs(steps.relay)
    with pytest.raises(RunNotFound, match="the app's bundle is no longer on the server"):
        steps.submit(client_bundle=blob_of(10, 1)[0])
    assert runs.alive_runs(steps.relay) == before


def test_a_run_ends_once(steps: Steps) -> None:
    assert runs.finish(steps.relay, steps.run, steps.token, "finished") is Step.OK
    assert runs.finish(steps.relay, steps.run, steps.token, "finished") is Step.OK
    assert runs.finish(steps.relay, steps.run, "", "stopped") is Step.OVER
    assert runs.run_info(steps.relay, steps.run).status == "finished"
    assert not runs.stop_run(steps.relay, steps.run)


def test_a_run_that_a_person_stopped_is_over_for_the_next_one(steps: Steps) -> None:
    assert runs.finish(steps.relay, steps.run, "", "stopped") is Step.OK
    assert runs.finish(steps.relay, steps.run, "", "failed") is Step.OVER


def test_a_failed_run_goes_on_where_it_was_with_new_attempts(steps: Steps) -> None:
    relay, run = steps.relay, steps.run
    done, waiting = steps.pushed("a", call=0), steps.pushed("b", call=1)
    steps.claim("a", done)
    steps.commit("a", done, context=(b"ctx", ()))
    assert runs.finish(relay, run, steps.token, "failed", reason="lost") is Step.OK
    assert steps.claim("b", waiting).outcome is claims.Claim.STOPPED
    assert runs.resume_run(relay, run, "once") is Step.OK
    assert runs.resume_run(relay, run, "once") is Step.OK
    assert runs.resume_run(relay, run) is Step.ALIVE
    info = runs.run_info(relay, run)
    assert (info.status, info.tries, info.reason, info.token, info.ended) == ("pending", 0, "", "", 0.0)
    claim = runs.claim_run(relay, run, "next")
    assert (claim.outcome, claim.attempt) == (Step.OK, 2)
    assert steps.push("a", call=9).outcome is Push.FENCED
    again = Steps(relay, token="next", run=run)
    assert again.push("a", call=0).outcome is Push.OK
    assert [entry.kind for entry in again.inbox("a") if entry.kind == "message"] == []
    assert again.claim("b", waiting).outcome is claims.Claim.OK


def test_what_finished_or_was_stopped_or_is_being_cleaned_up_is_not_resumed(steps: Steps) -> None:
    relay = steps.relay
    ends = []
    for status in ("finished", "stopped", "failed", "failed"):
        run = steps.submit()
        runs.claim_run(relay, run, "s")
        runs.finish(relay, run, "s", status)
        ends.append(run)
    finished, stopped, cleaned, at_a_node = ends
    cleanup.clean_run(relay, cleaned)
    keys = relay.keys
    names = [keys.run(at_a_node), keys.inbox("a"), keys.claims("a"), keys.order("a", at_a_node)]
    names += [f"{keys.base}{rest}" for rest in ("replies", "ctx", "objs", "log", "events")]
    relay.call("clean_node", names, [at_a_node, keys.node("a"), "g", keys.node_alive("a"), 1, 1])
    assert runs.resume_run(relay, finished) is runs.resume_run(relay, stopped) is Step.OVER
    assert runs.resume_run(relay, cleaned) is runs.resume_run(relay, at_a_node) is Step.CLEANED
    assert runs.resume_run(relay, 10**6) is Step.OVER
    assert not relay.redis.exists(keys.run(10**6))


def test_nothing_of_a_living_run_is_cleaned(steps: Steps) -> None:
    m = steps.pushed("a")
    assert not cleanup.clean_run(steps.relay, steps.run)
    assert steps.claim("a", m).outcome is claims.Claim.OK


def test_an_ended_run_leaves_status_config_result_events_and_final_arrays(steps: Steps) -> None:
    relay, keys = steps.relay, steps.relay.keys
    out_digest, out = blob_of(9000, 6)
    ctx_digest, ctx = blob_of(9000, 7)
    lost_digest, lost = blob_of(9000, 8)
    result_digest, result = blob_of(9000, 9)
    objects.upload_shared(relay, steps.run, steps.token, "0", {out_digest: out})
    steps.push("a", "b", objects=(out_digest,))
    m, n = steps.inbox("a")[0], steps.inbox("b")[0]
    steps.claim("a", m)
    objects.upload_node(relay, "a", steps.run, m.message_id, {ctx_digest: ctx, lost_digest: lost})
    steps.commit("a", m, context=(b"ctx", (ctx_digest,)))
    steps.claim("b", n)
    objects.upload_node(relay, "b", steps.run, n.message_id, {lost_digest: lost})
    events.append_log(relay, "a", steps.run, [{"text": "epoch 1"}])
    objects.upload_shared(relay, steps.run, steps.token, "ctx1", {ctx_digest: ctx}, guard=False)
    runs.save_checkpoint(relay, steps.run, steps.token, 0, (b"state", (ctx_digest,)))
    objects.upload_shared(relay, steps.run, steps.token, "result", {result_digest: result}, guard=False)
    runs.finish(relay, steps.run, steps.token, "finished", result=(b"arrays", (result_digest,)))
    assert cleanup.clean_run(relay, steps.run)
    assert not events.append_log(relay, "a", steps.run, [{"text": "too late"}])
    left = {key.decode() for key in relay.redis.scan_iter("*")}
    federation = {keys.nodes(), keys.runs(), keys.run_counter(), keys.wake()}
    per_node = {f(name) for name in "ab" for f in (keys.node_info, keys.node_alive, keys.inbox)}
    kept = {keys.run(steps.run), keys.events(steps.run), keys.run_objs(steps.run)}
    arrays = {keys.obj(result_digest), keys.obj_chunk(result_digest, 0), keys.obj_owners(result_digest)}
    submitted = {key for key in left if key.startswith(keys.submitted(""))}
    assert left - federation - per_node - kept - arrays - submitted == set()
    assert [e.data["text"] for e in events.read_events(relay, steps.run) if e.kind == "log"] == ["epoch 1"]
    assert objects.fetch_shared(relay, [result_digest])[result_digest] == result
    assert all(not any(entry.kind == "message" for entry in steps.inbox(name)) for name in "ab")


def test_a_cleaned_run_has_no_holder_and_its_entries_are_not_pending(steps: Steps) -> None:
    relay, keys = steps.relay, steps.relay.keys
    relay.redis.xgroup_create(keys.inbox("a"), GROUP, "0", mkstream=True)
    steps.pushed("a")
    relay.redis.xreadgroup(GROUP, "d", {keys.inbox("a"): ">"})
    events.emit(relay, steps.run, steps.token, 0, 0, "round", {})
    runs.stop_run(relay, steps.run)
    assert cleanup.clean_run(relay, steps.run)
    pending: Any = relay.redis.xpending(keys.inbox("a"), GROUP)
    assert pending["pending"] == 0
    assert not {b"token", b"lease", b"owner", b"event"} & set(relay.redis.hgetall(keys.run(steps.run)))


def test_the_clean_up_of_a_run_that_is_gone_writes_nothing(steps: Steps) -> None:
    relay, keys, run = steps.relay, steps.relay.keys, steps.run
    runs.stop_run(relay, run)
    relay.redis.delete(keys.run(run))
    relay.redis.sadd(keys.run_nodes(run), "a")
    assert cleanup.clean_run(relay, run)
    assert not relay.redis.exists(keys.run(run))
    assert cleanup.clean_run(relay, run)
    assert not relay.redis.exists(keys.run(run))
    relay.redis.zrem(keys.runs(), run)
    relay.redis.delete(keys.events(run))


def test_no_more_notes_of_a_run_are_kept_than_its_limit(steps: Steps) -> None:
    keys, most = steps.relay.keys, 3
    lines = [word for n in range(5) for word in ("log", f'{{"n": {n}}}')]
    reply = steps.relay.call("note", [keys.run(steps.run), keys.events(steps.run)], [steps.token, 100, most, *lines])
    assert reply == [b"OK", most]
    assert [e.data["n"] for e in events.read_events(steps.relay, steps.run) if e.kind == "log"] == [0, 1, 2]


def test_the_clean_up_of_one_run_leaves_another_as_it_was(steps: Steps) -> None:
    other = Steps(steps.relay, token="other")
    other.start()
    steps.push("a", "b")
    other.push("a")
    theirs = [m for m in other.inbox("a") if m.run == other.run]
    runs.stop_run(steps.relay, steps.run)
    cleanup.clean_run(steps.relay, steps.run)
    assert [m for m in other.inbox("a") if m.kind == "message"] == theirs
    assert other.claim("a", theirs[0], "w-9").outcome is claims.Claim.OK
