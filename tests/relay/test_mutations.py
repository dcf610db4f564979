"""Each check of each step is needed: without it, the model or a sentence notices."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from fedq.relay import scripts
from fedq.relay.connection import Relay
from tests.relay import (
    test_claim_and_commit,
    test_enqueue_step,
    test_push_checkpoint_and_cleanup,
    test_steps_alone,
    test_steps_look_before_they_write,
    test_what_the_steps_leave,
)
from tests.relay.conftest import Steps, federation
from tests.relay.machine import Protocol
from tests.relay.mutations import MUTATIONS, Mutation, source_of, steps
from tests.support.servers import RealServer

SENTENCES = [
    sentence
    for module in (
        *(test_steps_alone, test_steps_look_before_they_write, test_claim_and_commit, test_enqueue_step),
        *(test_push_checkpoint_and_cleanup, test_what_the_steps_leave),
    )
    for name, sentence in vars(module).items()
    if name.startswith("test_") and list(sentence.__annotations__) in (["steps", "return"], ["real_steps", "return"])
]
QUICK = settings(
    max_examples=100,
    stateful_step_count=50,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    print_blob=False,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)


NOTICED = (Exception, pytest.fail.Exception)
"""What a failed assertion raises; a ``pytest.raises`` that was disappointed raises no Exception."""


def test_every_step_is_mutated() -> None:
    assert {m.step for m in MUTATIONS} == set(steps())
    assert len({m.name for m in MUTATIONS}) == len(MUTATIONS)


NO_CHECKS = {
    "if type(found) == 'table' then found = found['ok'] end",  # how a server of another kind answers
}


def test_every_condition_is_among_the_mutations() -> None:
    """Whoever adds one adds its mutation."""
    lacking = []
    for step in steps():
        source = source_of(step)
        touched = [m.place(source) for m in MUTATIONS if m.step == step]
        end = 0
        for line in source.splitlines(keepends=True):
            begin, end = end, end + len(line)
            condition = line.strip()
            if not condition.startswith(("if ", "elseif ")) or condition in NO_CHECKS:
                continue
            if not any(first < end and last > begin for first, last in touched):
                lacking.append(f"{step}.lua: {condition}")
    assert lacking == []


@pytest.fixture
def mutate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Mutation], None]]:
    original = scripts.source

    def apply(mutation: Mutation) -> None:
        def source(name: str) -> str:
            prelude = source_of("_prelude")
            own = source_of(name)
            if mutation.step == "_prelude":
                prelude = mutation.apply(prelude)
            elif mutation.step == name:
                own = mutation.apply(own)
            return prelude + own

        monkeypatch.setattr(scripts, "source", source)
        scripts.digest.cache_clear()

    yield apply
    monkeypatch.setattr(scripts, "source", original)
    scripts.digest.cache_clear()


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Without some checks a step answers MORE for ever."""

    def give_up(*_: object) -> None:
        raise TimeoutError(f"still going on after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, give_up)
    # Again and again: what is given up on may begin to tidy up, and not come to an end with that either.
    signal.setitimer(signal.ITIMER_REAL, seconds, 2.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@dataclass(frozen=True)
class Sentence:
    """A test of the steps: what it calls of them, and how long that takes."""

    tell: Callable[[Steps], None]
    calls: frozenset[str]
    seconds: float

    def might_notice(self, mutation: Mutation) -> bool:
        """Whether the mutation is in anything that it calls."""
        return mutation.step == "_prelude" or mutation.step in self.calls


@pytest.fixture(scope="module")
def sentences(session_server: RealServer) -> list[Sentence]:
    """All of them, the quickest first. Each is told once with steps that lack nothing."""
    found = []
    called: set[str] = set()
    original = scripts.call

    def call(client: Any, name: str, keys: Any, args: Any) -> list[Any]:
        called.add(name)
        return original(client, name, keys, args)

    with pytest.MonkeyPatch.context() as patch, Relay.connect(session_server.url) as relay:
        patch.setattr(scripts, "call", call)
        for tell in SENTENCES:
            relay.redis.flushdb()
            called.clear()
            since = time.monotonic()
            with federation(relay) as driver:
                tell(driver)
            found.append(Sentence(tell, frozenset(called), time.monotonic() - since))
        relay.redis.flushdb()
    return sorted(found, key=lambda sentence: sentence.seconds)


def caught_by(relay: Relay, sentences: list[Sentence], most: float = 10.0) -> str | None:
    """What fails: a sentence by name, or the model; None if nothing does.

    A sentence that takes more than ``most`` seconds has failed; the model may take ten times as long.
    """

    class OnServer(Protocol):
        def relay(self) -> Relay:
            return relay

    for sentence in sentences:
        try:
            with patience(most), federation(relay) as driver:
                sentence.tell(driver)
        except NOTICED:
            return sentence.tell.__name__
        finally:
            relay.redis.flushdb()
    try:
        with patience(10 * most):
            run_state_machine_as_test(OnServer, settings=QUICK)
    except NOTICED:
        return "the model"
    return None


@pytest.mark.mutations
@pytest.mark.one_server
def test_steps_that_lack_nothing_are_found_in_order(server: RealServer, sentences: list[Sentence]) -> None:
    with Relay.connect(server.url) as relay:
        assert caught_by(relay, sentences, most=300.0) is None


@pytest.mark.mutations
@pytest.mark.one_server
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name)
def test_a_step_without_one_of_its_checks_is_noticed(
    mutation: Mutation,
    sentences: list[Sentence],
    mutate: Callable[[Mutation], None],
    server: RealServer,
    record_property: Callable[[str, object], None],
) -> None:
    mutate(mutation)
    with Relay.connect(server.url) as relay:
        caught = caught_by(relay, [sentence for sentence in sentences if sentence.might_notice(mutation)])
    record_property("caught_by", caught)
    assert caught, f"nothing notices that {mutation.step}.lua lacks: {mutation.text}"
