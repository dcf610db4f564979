"""The steps against a simple model, in any order that a network, a scheduler or a crash can bring about.

A crash between two steps is the absence of the second; a lost answer is a repeated call; a zombie is a call with a
token that has been superseded. Whatever the order, each message has one answer, that of its newest holder, the
Context is the fold of the committed answers in sequence, and a node runs the
messages of a run in the order of their push.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import fakeredis
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from fedq.apps.error import Error, ErrorCode
from fedq.relay import claims, contexts, messages, nodes, runs
from fedq.relay.claims import Claim, Commit, Renew
from fedq.relay.connection import Relay
from fedq.relay.messages import Answered, Push, Reason
from tests.relay.conftest import Steps

NODES = ("a", "b")
TOKENS = st.sampled_from(["w0", "w1", "w2", "w3"])
PICK = st.integers(0, 7)
MAX_DELIVERIES = 3


@dataclass
class ModelMessage:
    id: str
    node: str
    entry: str
    seq: int
    call: int
    attempt: int = 0
    holder: str | None = None
    lapsed: bool = False
    answer: bytes | None = None
    by: str = ""
    freed: bool = False

    @property
    def open(self) -> bool:
        return self.answer is None


@dataclass
class Model:
    messages: list[ModelMessage] = field(default_factory=list)
    context: dict[str, bytes | None] = field(default_factory=lambda: dict.fromkeys(NODES))
    alive: bool = True
    checkpoint: int = 0

    def turn(self, node: str) -> ModelMessage | None:
        waiting = [m for m in self.messages if m.node == node and m.open]
        return min(waiting, key=lambda m: m.seq, default=None)


class Protocol(RuleBasedStateMachine):
    """One run, two nodes, four workers that may all be zombies."""

    def relay(self) -> Relay:
        relay = Relay("redis://nowhere")
        relay.redis = fakeredis.FakeRedis(protocol=2)
        return relay

    @initialize()
    def begin(self) -> None:
        self.model = Model()
        self.steps = Steps(self.relay())
        for name in NODES:
            nodes.register(self.steps.relay, name, nodes.NodeInfo())
            nodes.beat(self.steps.relay, name)
        self.steps.start(max_deliveries=MAX_DELIVERIES, max_attempts=0)
        self.calls: list[tuple[int, tuple[str, ...]]] = []

    def pick(self, number: int) -> ModelMessage:
        return self.model.messages[number % len(self.model.messages)]

    def instruction(self, m: ModelMessage) -> messages.Instruction:
        return messages.Instruction(m.entry, "message", m.id, self.steps.run)

    # -- the ServerApp ------------------------------------------------------------------------------------------------

    @rule(to=st.sampled_from([("a",), ("b",), ("a", "b")]))
    def push(self, to: tuple[str, ...]) -> None:
        outcome = self.steps.push(*to).outcome
        if not self.model.alive:
            assert outcome is Push.STOPPED
            return
        assert outcome is Push.OK
        call = self.steps.calls - 1
        self.calls.append((call, to))
        for i, node in enumerate(to):
            identity = self.steps.message(call, i, node)
            (entry,) = [e for e in self.steps.inbox(node) if e.message_id == identity]
            self.model.messages.append(ModelMessage(identity, node, entry.entry, entry.seq, call))

    @precondition(lambda self: self.calls and self.model.alive)
    @rule(number=PICK, other=st.booleans())
    def push_again(self, number: int, other: bool) -> None:
        call, targets = self.calls[number % len(self.calls)]
        outcome = self.steps.push(*targets, call=call, body=b"other" if other else b"hello").outcome
        assert outcome is (Push.MISMATCH if other else Push.OK)

    @precondition(lambda self: self.model.alive)
    @rule()
    def another_attempt_takes_over(self) -> None:
        old = self.steps.token
        assert runs.release_run(self.steps.relay, self.steps.run, old) is runs.Step.OK
        self.steps.token = old + "'"
        runs.claim_run(self.steps.relay, self.steps.run, self.steps.token)
        assert self.steps.push("a", token=old, call=999).outcome is Push.FENCED
        assert runs.save_checkpoint(self.steps.relay, self.steps.run, old, 0, (b"", ())).outcome is runs.Step.FENCED

    @precondition(lambda self: self.model.alive)
    @rule(repeat=st.booleans())
    def checkpoint(self, repeat: bool) -> None:
        answered = [m for m in self.model.messages if not m.open and not m.freed]
        folded = [m.id for m in answered]
        for _ in range(2 if repeat else 1):
            saved = runs.save_checkpoint(
                self.steps.relay, self.steps.run, self.steps.token, self.model.checkpoint, (b"state", ()), folded
            )
            assert (saved.outcome, saved.checkpoint) == (runs.Step.OK, self.model.checkpoint + 1)
        self.model.checkpoint += 1
        self.steps.checkpoint += 1
        self.calls.clear()
        for _ in range(2 if repeat else 1):
            runs.free(self.steps.relay, self.steps.run, self.steps.token, [m.id for m in self.model.messages])
        for m in answered:
            m.freed = True

    @precondition(lambda self: self.model.messages)
    @rule(number=PICK)
    def cancel(self, number: int) -> None:
        m = self.pick(number)
        outcome = messages.answer(
            self.steps.relay, self.steps.run, m.node, m.entry, m.id, Reason.CANCELLED, Error(ErrorCode.CANCELLED, "")
        )
        if not m.open and not m.freed:
            assert outcome is Answered.ALREADY
        elif not self.model.alive:
            assert outcome is Answered.RUN_OVER
        elif m.freed:
            assert outcome is Answered.GONE
        else:
            assert outcome is Answered.ANSWERED
            m.answer, m.by, m.holder = b"cancelled", "answer:CANCELLED", None

    @precondition(lambda self: self.model.messages)
    @rule()
    def stop(self) -> None:
        assert runs.stop_run(self.steps.relay, self.steps.run) == self.model.alive
        self.model.alive = False

    # -- the workers --------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.model.messages)
    @rule(number=PICK, token=TOKENS, repeat=st.booleans(), short=st.booleans())
    def claim(self, number: int, token: str, repeat: bool, short: bool) -> None:
        m = self.pick(number)
        for _ in range(2 if repeat else 1):
            claimed = self.steps.claim(m.node, self.instruction(m), token, lease=0.0 if short else 60.0)
            expected = self.expected_claim(m, token)
            assert claimed.outcome is expected
            if expected is Claim.OK:
                if m.holder != token:
                    m.attempt += 1
                m.holder, m.lapsed = token, short
                assert claimed.attempt == m.attempt
                context = claimed.context.data if claimed.context else None
                assert context == self.model.context[m.node]

    def expected_claim(self, m: ModelMessage, token: str) -> Claim:
        if not self.model.alive:
            return Claim.STOPPED
        if not m.open:
            return Claim.GONE
        if m.holder == token:
            return Claim.OK
        if m.holder is not None:
            return Claim.LAPSED if m.lapsed else Claim.BUSY
        if self.model.turn(m.node) is not m:
            return Claim.NOT_YET
        return Claim.EXHAUSTED if m.attempt >= MAX_DELIVERIES else Claim.OK

    @precondition(lambda self: self.model.messages)
    @rule(number=PICK, token=TOKENS)
    def renew(self, number: int, token: str) -> None:
        m = self.pick(number)
        outcome = claims.renew(self.steps.relay, m.node, self.steps.run, m.entry, m.id, token, lease=60.0)
        if not self.model.alive:
            assert outcome is Renew.STOPPED
        elif not m.open:
            assert outcome is (Renew.COMMITTED if m.by == token and not m.freed else Renew.CANCELLED)
        elif m.holder is None:
            assert outcome is Renew.UNCLAIMED
        elif m.holder == token:
            assert outcome is Renew.OK
            m.lapsed = False
        else:
            assert outcome is Renew.SUPERSEDED

    @precondition(lambda self: self.model.messages)
    @rule(number=PICK, token=TOKENS, counts=st.booleans())
    def release(self, number: int, token: str, counts: bool) -> None:
        m = self.pick(number)
        held = m.open and m.holder == token
        assert claims.release(self.steps.relay, m.node, m.id, token, counts=counts) == held
        if held:
            m.holder = None
            m.attempt -= 0 if counts else 1

    @precondition(lambda self: self.model.messages)
    @rule(number=PICK, token=TOKENS)
    def lapse(self, number: int, token: str) -> None:
        m = self.pick(number)
        lapsed = m.open and m.holder == token and m.lapsed
        assert claims.lapse(self.steps.relay, m.node, m.id, token) == lapsed
        if lapsed:
            m.holder = None

    @precondition(lambda self: self.model.messages)
    @rule(number=PICK, token=TOKENS, repeat=st.booleans(), ok=st.booleans())
    def commit(self, number: int, token: str, repeat: bool, ok: bool) -> None:
        m = self.pick(number)
        for _ in range(2 if repeat else 1):
            before = self.model.context[m.node] or b""
            state = before + m.id[:2].encode()
            outcome = self.steps.commit(
                m.node,
                self.instruction(m),
                token,
                ok=ok,
                body=token.encode() + m.id.encode(),
                context=(state, ()) if ok else None,
            ).outcome
            if not m.open and not m.freed:
                assert outcome is (Commit.COMMITTED if m.by == token else Commit.SUPERSEDED)
            elif not self.model.alive:
                assert outcome is Commit.STOPPED
            elif m.open and m.holder == token:
                assert outcome is Commit.COMMITTED
                m.answer, m.by, m.holder = token.encode() + m.id.encode(), token, None
                if ok:
                    self.model.context[m.node] = state
            else:
                assert outcome is Commit.SUPERSEDED

    # -- what holds at any time ---------------------------------------------------------------------------------------

    @invariant()
    def the_inboxes_hold_just_what_is_unanswered(self) -> None:
        for node in NODES:
            waiting = {m.id for m in self.model.messages if m.node == node and m.open}
            entries = [e.message_id for e in self.steps.inbox(node) if e.kind == "message"]
            assert sorted(entries) == sorted(waiting)
            order = self.steps.relay.redis.zrange(self.steps.relay.keys.order(node, self.steps.run), 0, -1)
            assert {item.decode() for item in order} == waiting  # type: ignore[union-attr]

    @invariant()
    def every_answer_is_that_of_the_model_and_has_one_pointer(self) -> None:
        for node in NODES:
            answered = [m for m in self.model.messages if m.node == node and not m.open and not m.freed]
            assert self.steps.pointers(node) == len(answered)
            found = messages.read_answers(self.steps.relay, [(node, m.id) for m in answered])
            for m in answered:
                assert m.answer == b"cancelled" or found[m.id].body == m.answer

    @invariant()
    def the_context_is_the_fold_of_what_was_committed(self) -> None:
        for node in NODES:
            version = contexts.node_context(self.steps.relay, node, self.steps.run)
            assert (version.data if version else None) == self.model.context[node]

    def teardown(self) -> None:
        if hasattr(self, "steps"):
            self.steps.end()
            left = [
                key
                for node in NODES
                for key in self.steps.relay.redis.scan_iter(self.steps.relay.keys.node(node) + "*")
                if key.decode().rsplit(":", 1)[-1] not in ("info", "alive", "inbox")
            ]
            self.steps.forget()
            self.steps.relay.close()
            assert left == []


CALM = {"deadline": None, "suppress_health_check": list(HealthCheck)}


def test_the_steps_do_what_the_model_does() -> None:
    run_state_machine_as_test(Protocol, settings=settings(max_examples=60, stateful_step_count=40, **CALM))


@pytest.fixture
def protocol_on_a_server(server: object, relay: Relay) -> Iterator[type[Protocol]]:
    class OnServer(Protocol):
        def relay(self) -> Relay:
            relay.redis.flushdb()
            return relay

    yield OnServer
    relay.redis.flushdb()


def test_the_steps_do_what_the_model_does_on_a_real_server(protocol_on_a_server: type[Protocol]) -> None:
    run_state_machine_as_test(protocol_on_a_server, settings=settings(max_examples=60, stateful_step_count=40, **CALM))
