"""What no order of calls brings about, but a step refuses all the same."""

from __future__ import annotations

from fedq.relay import claims
from fedq.relay.claims import Commit
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
