"""One message is run by one holder at a time, in its turn, and its answer is written once."""

from __future__ import annotations

from fedq.apps.digest import digest_of
from fedq.apps.error import Error, ErrorCode
from fedq.relay import claims, messages, objects, runs
from fedq.relay.claims import Claim, Commit, Renew
from fedq.relay.messages import Answered, Push, Reason
from tests.relay.conftest import Steps


def test_a_claimed_and_committed_message_leaves_the_inbox_and_has_one_answer(steps: Steps) -> None:
    m = steps.pushed("a", body=b"question")
    claimed = steps.claim("a", m)
    assert claimed.outcome is Claim.OK
    assert claimed.attempt == 1
    assert claimed.instruction == m
    assert claimed.context is None
    assert steps.commit("a", m, body=b"reply").outcome is Commit.COMMITTED
    answer = steps.answered("a", m)
    assert answer is not None
    assert answer.ok
    assert answer.body == b"reply"
    assert answer.attempt == 1
    assert [entry.kind for entry in steps.inbox("a") if entry.kind == "message"] == []
    assert steps.pointers("a") == 1


def test_the_same_token_gets_the_same_answer_to_claim_and_commit(steps: Steps) -> None:
    m = steps.pushed("a")
    assert steps.claim("a", m).attempt == steps.claim("a", m).attempt == 1
    assert steps.commit("a", m).outcome is Commit.COMMITTED
    assert steps.commit("a", m, body=b"other").outcome is Commit.COMMITTED
    answer = steps.answered("a", m)
    assert answer is not None
    assert answer.body == b"reply"
    assert steps.pointers("a") == 1


def test_a_live_claim_of_another_holder_is_busy(steps: Steps) -> None:
    m = steps.pushed("a")
    steps.claim("a", m, "w-1")
    busy = steps.claim("a", m, "w-2")
    assert busy.outcome is Claim.BUSY
    assert 0 < busy.busy_for <= 15


def test_a_lapsed_claim_is_taken_only_after_the_reconciler_freed_it(steps: Steps) -> None:
    m = steps.pushed("a")
    steps.claim("a", m, "w-1", lease=0.0)
    assert steps.claim("a", m, "w-2").outcome is Claim.LAPSED
    assert claims.lapse(steps.relay, "a", m.message_id, "w-1")
    again = steps.claim("a", m, "w-2")
    assert (again.outcome, again.attempt) == (Claim.OK, 2)


def test_the_reconciler_cannot_free_a_live_claim(steps: Steps) -> None:
    m = steps.pushed("a")
    steps.claim("a", m, "w-1")
    assert not claims.lapse(steps.relay, "a", m.message_id, "w-1")
    assert steps.claim("a", m, "w-2").outcome is Claim.BUSY


def test_the_commit_of_a_superseded_holder_changes_nothing(steps: Steps) -> None:
    m = steps.pushed("a")
    steps.claim("a", m, "zombie", lease=0.0)
    claims.lapse(steps.relay, "a", m.message_id, "zombie")
    steps.claim("a", m, "heir")
    assert steps.commit("a", m, "zombie", body=b"stale", context=(b"stale", ())).outcome is Commit.SUPERSEDED
    assert steps.answered("a", m) is None
    assert steps.commit("a", m, "heir").outcome is Commit.COMMITTED
    assert steps.commit("a", m, "zombie", body=b"stale").outcome is Commit.SUPERSEDED
    answer = steps.answered("a", m)
    assert answer is not None
    assert answer.body == b"reply"


def test_a_graceful_release_gives_the_attempt_back_and_a_death_does_not(steps: Steps) -> None:
    m = steps.pushed("a")
    steps.claim("a", m, "w-1")
    assert claims.release(steps.relay, "a", m.message_id, "w-1", counts=False)
    assert steps.claim("a", m, "w-2").attempt == 1
    assert claims.release(steps.relay, "a", m.message_id, "w-2", counts=True)
    assert steps.claim("a", m, "w-3").attempt == 2
    assert not claims.release(steps.relay, "a", m.message_id, "w-2", counts=True)


def test_messages_of_one_run_and_node_are_claimed_in_the_order_of_their_push(steps: Steps) -> None:
    steps.push("a")
    steps.push("a")
    first, second = (m for m in steps.inbox("a") if m.kind == "message")
    assert first.seq < second.seq
    assert steps.claim("a", second).outcome is Claim.NOT_YET
    steps.claim("a", first)
    assert steps.claim("a", second).outcome is Claim.NOT_YET
    steps.commit("a", first)
    assert steps.claim("a", second).outcome is Claim.OK


def test_the_context_of_a_commit_is_what_the_next_claim_gets(steps: Steps) -> None:
    for turn in range(4):
        m = steps.pushed("a")
        found = steps.claim("a", m, f"w-{turn}").context
        assert (found and found.data) == (f"after {turn - 1}".encode() if turn else None)
        steps.commit("a", m, f"w-{turn}", context=(f"after {turn}".encode(), ()))
    assert steps.relay.redis.xlen(steps.relay.keys.node_ctx("a", steps.run)) == 2


def test_an_error_answer_leaves_the_context_as_it_was(steps: Steps) -> None:
    m = steps.pushed("a")
    steps.claim("a", m)
    steps.commit("a", m, context=(b"good", ()))
    n = steps.pushed("a")
    steps.claim("a", n, "w-2")
    steps.commit("a", n, "w-2", ok=False, body=b"error", context=None)
    o = steps.pushed("a")
    context = steps.claim("a", o, "w-3").context
    assert context is not None
    assert context.data == b"good"


def test_attempts_end_at_the_limit_and_the_message_is_then_answered_once(steps: Steps) -> None:
    steps.end()
    steps.start(max_deliveries=2)
    m = steps.pushed("a")
    for attempt in (1, 2):
        assert steps.claim("a", m, f"w-{attempt}").attempt == attempt
        early = messages.answer(
            steps.relay, steps.run, "a", m.entry, m.message_id, Reason.EXHAUSTED, Error(ErrorCode.MAX_DELIVERIES, "no")
        )
        assert early is Answered.NOT_SO
        claims.release(steps.relay, "a", m.message_id, f"w-{attempt}", counts=True)
    assert steps.claim("a", m, "w-3").outcome is Claim.EXHAUSTED
    error = Error(ErrorCode.MAX_DELIVERIES, "died twice")
    args = (steps.relay, steps.run, "a", m.entry, m.message_id, Reason.EXHAUSTED, error)
    assert messages.answer(*args) is Answered.ANSWERED
    assert messages.answer(*args) is Answered.ALREADY
    answer = steps.answered("a", m)
    assert answer is not None
    assert not answer.ok
    assert answer.code == ErrorCode.MAX_DELIVERIES
    assert steps.pointers("a") == 1


def test_an_expired_message_is_refused_and_only_then_answered_as_expired(steps: Steps) -> None:
    fresh = steps.pushed("a")
    error = Error(ErrorCode.MESSAGE_EXPIRED, "too late")
    args = (steps.relay, steps.run, "a", fresh.entry, fresh.message_id, Reason.EXPIRED, error)
    assert messages.answer(*args) is Answered.NOT_SO
    stale = steps.pushed("b", ttl=0.0)
    assert steps.claim("b", stale).outcome is Claim.EXPIRED
    assert (
        messages.answer(steps.relay, steps.run, "b", stale.entry, stale.message_id, Reason.EXPIRED, error)
        is Answered.ANSWERED
    )


def test_a_cancelled_message_overrides_a_live_lease_and_frees_the_turn(steps: Steps) -> None:
    steps.push("a")
    steps.push("a")
    first, second = (m for m in steps.inbox("a") if m.kind == "message")
    steps.claim("a", first, "w-1")
    error = Error(ErrorCode.CANCELLED, "enough replies")
    outcome = messages.answer(
        steps.relay, steps.run, "a", first.entry, first.message_id, Reason.CANCELLED, error, token=steps.token
    )
    assert outcome is Answered.ANSWERED
    assert claims.renew(steps.relay, "a", steps.run, first.entry, first.message_id, "w-1") is Renew.CANCELLED
    assert steps.commit("a", first, "w-1").outcome is Commit.SUPERSEDED
    assert steps.claim("a", second, "w-2").outcome is Claim.OK


def test_a_stale_attempt_of_the_serverapp_cannot_cancel(steps: Steps) -> None:
    m = steps.pushed("a")
    outcome = messages.answer(
        steps.relay, steps.run, "a", m.entry, m.message_id, Reason.CANCELLED, Error(105), token="old attempt"
    )
    assert outcome is Answered.FENCED


def test_a_message_of_an_online_node_is_not_answered_as_offline(steps: Steps) -> None:
    m = steps.pushed("a", on_offline="fail")
    args = (steps.relay, steps.run, "a", m.entry, m.message_id, Reason.OFFLINE, Error(ErrorCode.NODE_UNAVAILABLE))
    assert messages.answer(*args) is Answered.NOT_SO
    steps.relay.redis.delete(steps.relay.keys.node_alive("a"))
    assert messages.answer(*args) is Answered.ANSWERED


def test_renewal_tells_the_holder_what_happened(steps: Steps) -> None:
    m = steps.pushed("a")

    def renew(token: str) -> Renew:
        return claims.renew(steps.relay, "a", steps.run, m.entry, m.message_id, token)

    assert renew("w-1") is Renew.UNCLAIMED
    steps.claim("a", m, "w-1")
    assert renew("w-1") is Renew.OK
    assert renew("w-0") is Renew.SUPERSEDED
    steps.commit("a", m, "w-1")
    assert renew("w-1") is Renew.COMMITTED
    runs.stop_run(steps.relay, steps.run)
    assert renew("w-1") is Renew.STOPPED


def test_nothing_is_claimed_or_committed_for_a_run_that_is_over(steps: Steps) -> None:
    m = steps.pushed("a")
    n = steps.pushed("b")
    steps.claim("a", m)
    runs.stop_run(steps.relay, steps.run)
    assert steps.commit("a", m).outcome is Commit.STOPPED
    assert steps.claim("b", n).outcome is Claim.STOPPED
    assert steps.push("a").outcome is Push.STOPPED


def test_a_commit_that_names_an_array_which_is_not_there_writes_nothing_and_says_which(steps: Steps) -> None:
    m = steps.pushed("a")
    steps.claim("a", m)
    blob = bytes(9000)
    digest = digest_of(blob)
    refused = steps.commit("a", m, objects=(digest,), context=(b"c", (digest,)))
    assert refused.outcome is Commit.MISSING
    assert set(refused.missing) == {digest}
    assert steps.answered("a", m) is None
    objects.upload_node(steps.relay, "a", steps.run, m.message_id, {digest: blob})
    assert steps.commit("a", m, objects=(digest,), context=(b"c", (digest,))).outcome is Commit.COMMITTED
    assert objects.fetch_node(steps.relay, "a", [digest])[digest] == blob


def test_an_answer_may_name_its_requests_arrays_but_not_those_of_others(steps: Steps) -> None:
    blob, secret = b"x" * 9000, b"y" * 9000
    shared = {digest_of(b): b for b in (blob, secret)}
    objects.upload_shared(steps.relay, steps.run, steps.token, "0", shared)
    m = steps.pushed("a", objects=(digest_of(blob),))
    steps.claim("a", m)
    assert steps.commit("a", m, objects=(digest_of(secret),)).outcome is Commit.MISSING
    assert steps.commit("a", m, objects=(digest_of(blob),), context=None).outcome is Commit.COMMITTED


def test_a_claim_is_given_back_once(steps: Steps) -> None:
    m = steps.pushed("a")
    steps.claim("a", m)
    assert claims.release(steps.relay, "a", m.message_id, "w-1", counts=True)
    assert not claims.release(steps.relay, "a", m.message_id, "w-1", counts=False)
    assert not claims.lapse(steps.relay, "a", m.message_id, "w-1")
    assert claims.read_claims(steps.relay, "a")[m.message_id].attempt == 1
