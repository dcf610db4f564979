"""A key that holds something else than it should stops a step before its first write, and is named."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fedq.apps.error import Error, ErrorCode
from fedq.relay import claims, events, journal, messages, runs
from fedq.relay.errors import RelayError
from fedq.relay.messages import Instruction, Reason
from tests.relay.conftest import Steps

Call = Callable[[], object]


def calls(steps: Steps, waiting: Instruction, held: Instruction, spare: int) -> Iterator[tuple[Call, list[str]]]:
    """Calls that would all go through, each with the keys that it looks at first."""
    relay, keys, run, token = steps.relay, steps.relay.keys, steps.run, steps.token
    yield lambda: runs.claim_run(relay, spare, "s"), [keys.run(spare), keys.run_ctx(spare), keys.events(spare)]
    yield (
        lambda: steps.push("a", call=99),
        [
            *(keys.sent(run), keys.deadlines(run), keys.journal(run), keys.run_nodes(run), keys.run_objs(run)),
            *(keys.inbox("a"), keys.order("a", run)),
        ],
    )
    yield (
        lambda: runs.save_checkpoint(relay, run, token, 0, (b"", ())),
        [keys.run_ctx(run), keys.journal(run), keys.run_objs(run), keys.sent(run), keys.deadlines(run)],
    )
    yield lambda: journal.record(relay, run, token, 0, "receive:0", ""), [keys.journal(run)]
    yield lambda: events.note(relay, run, token, [("log", {})]), [keys.events(run)]
    yield lambda: runs.resume_run(relay, spare), [keys.run(spare), keys.events(spare), keys.wake()]
    own = [keys.inbox("a"), keys.claims("a")]
    yield (
        lambda: claims.claim(relay, "b", run, waiting.entry, waiting.message_id, "w"),
        [keys.inbox("b"), keys.claims("b"), keys.order("b", run), keys.node_ctx("b", run)],
    )
    yield (
        lambda: messages.answer(
            *(relay, run, "a", held.entry, held.message_id), Reason.CANCELLED, Error(ErrorCode.CANCELLED, "")
        ),
        [*own, keys.order("a", run), keys.replies("a", run)],
    )
    yield (
        lambda: steps.commit("a", held),
        [*own, keys.order("a", run), keys.replies("a", run), keys.node_ctx("a", run), keys.node_objs("a", run)],
    )


def test_a_key_that_is_not_what_it_should_be_stops_a_step_before_it_writes(steps: Steps) -> None:
    redis: Any = steps.relay.redis
    held, waiting = steps.pushed("a"), steps.pushed("b")
    steps.claim("a", held)
    spare = steps.submit()
    for call, looked_at in calls(steps, waiting, held, spare):
        for key in looked_at:
            kept = bool(redis.exists(key)) and bool(redis.rename(key, "kept"))
            redis.set(key, "something else")
            before = {name: redis.dump(name) for name in redis.keys("*")}
            with pytest.raises(RelayError, match=re.escape(f"CORRUPT {key} ")):
                call()
            assert {name: redis.dump(name) for name in redis.keys("*")} == before, key
            redis.delete(key)
            if kept:
                redis.rename("kept", key)
