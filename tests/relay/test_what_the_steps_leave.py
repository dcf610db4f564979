"""What each step leaves in the server's keys, where only the next steps would show it."""

from __future__ import annotations

from fedq.apps.digest import digest_of
from fedq.apps.error import Error, ErrorCode
from fedq.relay import claims, cleanup, messages, nodes, objects, runs
from fedq.relay.claims import Claim, Commit
from fedq.relay.keys import GROUP
from fedq.relay.messages import Answered, Push, Reason
from fedq.relay.runs import Step
from tests.relay.conftest import Steps

CANCELLED = Error(ErrorCode.CANCELLED, "no longer wanted")


def array(steps: Steps, fill: bytes, owner: str, times: int = 1000) -> str:
    """A shared array that was uploaded for ``owner``; its digest."""
    data = fill * times
    digest = digest_of(data)
    objects.upload_shared(steps.relay, steps.run, steps.token, owner, {digest: data})
    return digest


def owners(steps: Steps, digest: str) -> set[str]:
    return {owner.decode() for owner in steps.relay.redis.smembers(steps.relay.keys.obj_owners(digest))}


def indexed(steps: Steps, run: int | None = None) -> set[str]:
    """What the clean-up of the run will visit."""
    return {pair.decode() for pair in steps.relay.redis.smembers(steps.relay.keys.run_objs(run or steps.run))}


def shared_keys(steps: Steps, digest: str) -> list[str]:
    keys = steps.relay.keys
    return [keys.obj(digest), keys.obj_chunk(digest, 0), keys.obj_owners(digest)]


def lasting(steps: Steps, names: list[str]) -> bool:
    return all(steps.relay.redis.ttl(name) == -1 for name in names)


# -- the inbox --------------------------------------------------------------------------------------------------------


def test_one_wake_up_waits_for_a_dispatcher_that_is_there_and_none_for_nobody(steps: Steps) -> None:
    relay, keys = steps.relay, steps.relay.keys
    inbox = keys.inbox("a")

    def kinds() -> list[str]:
        return [fields[b"kind"].decode() for _, fields in relay.redis.xrange(inbox)]

    def no_wake() -> None:
        for entry, fields in relay.redis.xrange(inbox):
            if fields[b"kind"] == b"wake":
                relay.redis.xdel(inbox, entry)

    relay.redis.xgroup_create(inbox, GROUP, id="0", mkstream=True)
    first, second = steps.pushed("a"), steps.pushed("a")
    relay.redis.xreadgroup(GROUP, "reader", {inbox: ">"})
    assert relay.redis.xpending(inbox, GROUP)["pending"] == 2
    steps.claim("a", first)
    steps.commit("a", first)
    assert relay.redis.xpending(inbox, GROUP)["pending"] == 1
    assert kinds() == ["message", "wake"]

    steps.claim("a", second)
    assert claims.release(relay, "a", second.message_id, "w-1", counts=False)
    assert kinds() == ["message", "wake"]
    no_wake()
    steps.claim("a", second)
    assert claims.release(relay, "a", second.message_id, "w-1", counts=False)
    assert kinds() == ["message", "wake"]
    no_wake()
    nodes.leave(relay, "a")
    steps.claim("a", second)
    assert claims.release(relay, "a", second.message_id, "w-1", counts=False)
    assert kinds() == ["message"]

    nodes.beat(relay, "a")
    steps.claim("a", second)
    steps.commit("a", second)
    assert kinds() == []


def test_a_claim_that_never_was_is_not_made_by_giving_it_back(steps: Steps) -> None:
    m = steps.pushed("a")
    assert not claims.release(steps.relay, "a", m.message_id, "w-1", counts=True)
    assert claims.read_claims(steps.relay, "a") == {}


def test_a_dispatcher_hears_that_the_messages_of_an_ended_run_are_gone(steps: Steps) -> None:
    inbox = steps.relay.keys.inbox("a")
    steps.pushed("a")
    runs.finish(steps.relay, steps.run, "", "stopped")
    cleanup.clean_run(steps.relay, steps.run)
    assert [fields[b"kind"] for _, fields in steps.relay.redis.xrange(inbox)] == [b"wake"]


# -- claims and answers -----------------------------------------------------------------------------------------------


def test_what_is_no_longer_in_the_inbox_is_neither_claimed_nor_answered(steps: Steps) -> None:
    m, last = steps.pushed("a"), steps.pushed("a")
    steps.relay.redis.xdel(steps.relay.keys.inbox("a"), m.entry)
    assert steps.claim("a", m).outcome is Claim.GONE
    answered = messages.answer(steps.relay, m.run, "a", m.entry, m.message_id, Reason.CANCELLED, CANCELLED)
    assert answered is Answered.GONE
    assert steps.answered("a", m) is None
    assert steps.pointers("a") == 0

    runs.finish(steps.relay, steps.run, "", "stopped")
    late = messages.answer(steps.relay, m.run, "a", last.entry, last.message_id, Reason.CANCELLED, CANCELLED)
    assert late is Answered.RUN_OVER
    assert steps.answered("a", last) is None


def test_a_commit_needs_a_claim(steps: Steps) -> None:
    m = steps.pushed("a")
    assert steps.commit("a", m, "w-1").outcome is Commit.SUPERSEDED
    assert steps.answered("a", m) is None


def test_a_run_without_limits_is_tried_as_often_as_it_takes(steps: Steps) -> None:
    run = steps.submit(max_deliveries=0, max_attempts=0)
    assert runs.claim_run(steps.relay, run, "app").outcome is Step.OK
    other = Steps(steps.relay, run=run, token="app")
    m = other.pushed("a")
    assert other.claim("a", m).outcome is Claim.OK


def test_what_a_commit_names_lasts_and_has_to_be_there(steps: Steps) -> None:
    m, keys = steps.pushed("a"), steps.relay.keys
    in_reply, in_context = b"reply" * 1000, b"context" * 1000
    digests = [digest_of(data) for data in (in_reply, in_context)]
    steps.claim("a", m)
    objects.upload_node(steps.relay, "a", m.run, m.message_id, {digests[0]: in_reply})
    refused = steps.commit("a", m, objects=(digests[0],), context=(b"ctx", (digests[1],)))
    assert (refused.outcome, refused.missing) == (Commit.MISSING, (digests[1],))
    assert steps.answered("a", m) is None

    objects.upload_node(steps.relay, "a", m.run, m.message_id, {digests[1]: in_context})
    done = steps.commit("a", m, objects=(digests[0],), context=(b"ctx", (digests[1],)))
    assert done.outcome is Commit.COMMITTED
    for digest in digests:
        parts = [keys.node_obj("a", digest), keys.node_obj_chunk("a", digest, 0), keys.node_obj_owners("a", digest)]
        assert lasting(steps, parts)


# -- runs -------------------------------------------------------------------------------------------------------------


def test_a_repeated_claim_of_a_run_is_the_same_attempt_and_each_answer_a_new_revision(steps: Steps) -> None:
    run = steps.submit()
    first = runs.claim_run(steps.relay, run, "app")
    again = runs.claim_run(steps.relay, run, "app")
    assert [first.outcome, again.outcome] == [Step.OK, Step.OK]
    assert (again.attempt, again.revision) == (first.attempt, first.revision + 1)
    runs.release_run(steps.relay, run, "app")
    second = runs.claim_run(steps.relay, run, "another")
    assert (second.attempt, second.revision) == (first.attempt + 1, first.revision + 2)
    told = [fields[b"data"] for _, fields in steps.relay.redis.xrange(steps.relay.keys.events(run))]
    assert told == [b'{"status":"pending"}', b'{"status":"running"}']


def test_a_run_that_never_was_is_gone(steps: Steps) -> None:
    assert runs.claim_run(steps.relay, 10**6, "app").outcome is Step.GONE


def test_a_run_that_lives_and_has_sent_nothing_is_not_cleaned_up(steps: Steps) -> None:
    assert not cleanup.clean_run(steps.relay, steps.run)
    assert runs.alive_runs(steps.relay) == [steps.run]


def test_a_push_owns_the_arrays_it_names_whoever_uploaded_them(steps: Steps) -> None:
    digest = array(steps, b"parameters", "ctx1")
    assert steps.push("a", objects=(digest,)).outcome is Push.OK
    assert owners(steps, digest) == {f"{steps.run}:ctx1", f"{steps.run}:0"}
    assert indexed(steps) == {f"{steps.run}:ctx1 {digest}", f"{steps.run}:0 {digest}"}


def test_an_array_without_a_manifest_is_not_there_though_its_chunks_are(steps: Steps) -> None:
    data = b"interrupted" * 1000
    digest = digest_of(data)
    for chunk in (0, 1):
        steps.relay.redis.set(steps.relay.keys.obj_chunk(digest, chunk), data, ex=60)
    refused = steps.push("a", objects=(digest,))
    assert (refused.outcome, refused.detail) == (Push.MISSING, (digest,))


def test_a_checkpoint_owns_its_arrays_until_the_next_one(steps: Steps) -> None:
    relay, keys, run = steps.relay, steps.relay.keys, steps.run
    first, second = array(steps, b"first", "0"), array(steps, b"second", "0")

    refused = runs.save_checkpoint(relay, run, steps.token, 0, (b"c", ("not-there", first)))
    assert (refused.outcome, refused.missing) == (Step.MISSING, ("not-there",))
    assert runs.run_info(relay, run).checkpoint == 0

    revision = runs.run_info(relay, run).revision
    saved = runs.save_checkpoint(relay, run, steps.token, 0, (b"one", (first,)))
    assert (saved.outcome, saved.checkpoint, saved.revision) == (Step.OK, 1, revision + 1)
    assert owners(steps, first) == {f"{run}:0", f"{run}:ctx1"}
    assert f"{run}:ctx1 {first}" in indexed(steps)
    assert lasting(steps, shared_keys(steps, first))

    saved = runs.save_checkpoint(relay, run, steps.token, 1, (b"two", (second,)))
    assert (saved.checkpoint, saved.revision) == (2, revision + 2)
    assert owners(steps, first) == {f"{run}:0"}
    assert indexed(steps) == {f"{run}:0 {first}", f"{run}:0 {second}", f"{run}:ctx2 {second}"}
    assert [fields[b"data"] for _, fields in relay.redis.xrange(keys.run_ctx(run))] == [b"two"]


def test_an_array_that_a_submit_may_want_too_lasts_as_long_as_the_run_needs_it(steps: Steps) -> None:
    relay, run = steps.relay, steps.run
    digests = []
    # Of a set of owners nobody knows which comes first, so there are some of them.
    for number in range(8):
        data = b"both %d" % number * 100
        objects.upload_bundle(relay, {digest_of(data): data})
        digests.append(array(steps, b"both %d" % number, str(number), times=100))
    runs.save_checkpoint(relay, run, steps.token, 0, (b"one", digests))
    runs.save_checkpoint(relay, run, steps.token, 1, (b"two", ()))
    for number, digest in enumerate(digests):
        assert owners(steps, digest) == {"upload", f"{run}:{number}"}
        assert lasting(steps, shared_keys(steps, digest))


def test_a_repeated_submit_leaves_the_app_to_its_run_alone(steps: Steps) -> None:
    app = b"app" * 100
    digest = digest_of(app)
    spec = runs.RunSpec(client_token="the same", client_bundle=digest)
    objects.upload_bundle(steps.relay, {digest: app})
    run = runs.submit(steps.relay, spec)
    objects.upload_bundle(steps.relay, {digest: app})
    assert owners(steps, digest) == {f"{run}:app", "upload"}
    assert runs.submit(steps.relay, spec) == run
    assert owners(steps, digest) == {f"{run}:app"}


def test_a_result_owns_its_arrays_until_the_run_is_removed(steps: Steps) -> None:
    digest = array(steps, b"final", "0")
    runs.finish(steps.relay, steps.run, steps.token, "finished", result=(b"r", (digest,)))
    assert cleanup.clean_run(steps.relay, steps.run)
    assert owners(steps, digest) == {f"{steps.run}:result"}
    assert indexed(steps) == {f"{steps.run}:result {digest}"}
    assert lasting(steps, shared_keys(steps, digest))
    assert cleanup.remove_run(steps.relay, steps.run)
    assert not steps.relay.redis.exists(*shared_keys(steps, digest))


def test_freeing_takes_deadlines_and_the_arrays_of_a_checkpoint_that_is_through(steps: Steps) -> None:
    frees(steps, with_the_checkpoint=False)


def test_what_a_checkpoint_frees_goes_in_the_same_way(steps: Steps) -> None:
    frees(steps, with_the_checkpoint=True)


def frees(steps: Steps, *, with_the_checkpoint: bool) -> None:
    relay, keys, run = steps.relay, steps.relay.keys, steps.run
    before, after = array(steps, b"before", "0"), array(steps, b"after", "1")
    m = steps.pushed("a", objects=(before,))
    steps.claim("a", m)
    steps.commit("a", m)
    runs.save_checkpoint(relay, run, steps.token, 0, (b"c", ()), [m.message_id] if with_the_checkpoint else [])
    steps.checkpoint = 1
    later = steps.pushed("a", objects=(after,))

    freed = runs.free(relay, run, steps.token, [m.message_id, later.message_id])
    assert freed == (0 if with_the_checkpoint else 1)

    assert relay.redis.zrange(keys.deadlines(run), 0, -1) == [later.message_id.encode()]
    assert indexed(steps) == {f"{run}:1 {after}"}
    assert not relay.redis.exists(*shared_keys(steps, before))
    assert owners(steps, after) == {f"{run}:1"}


# -- uploads and leases -----------------------------------------------------------------------------------------------


def test_every_part_of_an_upload_gets_its_full_time_again(steps: Steps) -> None:
    data = b"app" * 100
    digest = digest_of(data)
    for name in shared_keys(steps, digest):
        objects.upload_bundle(steps.relay, {digest: data})
        steps.relay.redis.expire(name, objects.UNFINISHED_TTL // 2)
        objects.upload_bundle(steps.relay, {digest: data})
        assert steps.relay.redis.ttl(name) > objects.UNFINISHED_TTL // 2
    steps.relay.redis.delete(*shared_keys(steps, digest))


def test_a_role_ends_by_itself_and_one_that_nobody_holds_can_be_dropped(steps: Steps) -> None:
    key = steps.relay.keys.node_dispatcher("a")
    nodes.drop_lease(steps.relay, key, "somebody")
    assert not steps.relay.redis.exists(key)
    assert nodes.take_lease(steps.relay, key, "somebody", lease=60.0).held
    assert 0 < steps.relay.redis.ttl(key) <= 60
    nodes.drop_lease(steps.relay, key, "somebody")
