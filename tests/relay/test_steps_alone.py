"""What no order of calls brings about, but a step refuses all the same."""

from __future__ import annotations

from fedq.apps.error import Error, ErrorCode
from fedq.relay import claims, messages, objects, runs
from fedq.relay.claims import Commit
from fedq.relay.messages import Answered, Reason
from tests.relay.conftest import Steps


def test_a_commit_out_of_turn_is_refused(steps: Steps) -> None:
    m = steps.pushed("a")
    steps.claim("a", m)
    steps.relay.redis.zadd(steps.relay.keys.order("a", steps.run), {"an earlier one": 0})
    assert steps.commit("a", m).outcome is Commit.SUPERSEDED
    assert steps.answered("a", m) is None
    steps.relay.redis.zrem(steps.relay.keys.order("a", steps.run), "an earlier one")
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
    }  # type: ignore[misc]


def test_an_uploaded_app_goes_by_itself_unless_a_run_needs_it(steps: Steps) -> None:
    app = b"app" * 100
    digest = objects.digest_of(app)
    objects.upload_bundle(steps.relay, {digest: app})
    assert all(0 < life <= objects.UNFINISHED_TTL for life in lives(steps, digest))
    run = steps.submit(client_bundle=digest)
    assert lives(steps, digest) == {-1}
    runs.stop_run(steps.relay, run)
    runs.remove_run(steps.relay, run)
    assert lives(steps, digest) == {-2}


def test_an_app_that_two_runs_need_stays_for_the_second_whoever_uploads_it_again(steps: Steps) -> None:
    app = b"shared" * 100
    digest = objects.digest_of(app)
    objects.upload_bundle(steps.relay, {digest: app})
    first, second = steps.submit(client_bundle=digest), steps.submit(client_bundle=digest)
    objects.upload_bundle(steps.relay, {digest: app})
    runs.stop_run(steps.relay, first)
    runs.remove_run(steps.relay, first)
    assert lives(steps, digest) == {-1}
    runs.stop_run(steps.relay, second)
    runs.remove_run(steps.relay, second)
    # Somebody is about to submit it once more; if that never happens, it goes by itself.
    assert all(0 < life <= objects.UNFINISHED_TTL for life in lives(steps, digest))


def test_a_push_keeps_what_was_only_an_upload(steps: Steps) -> None:
    data = b"z" * 9000
    digest = objects.digest_of(data)
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
