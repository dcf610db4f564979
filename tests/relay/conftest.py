"""A federation at the level of the steps: one run, held by a ServerApp's token, and nodes that are only names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import fakeredis
import pytest

from fedq.relay import claims, cleanup, messages, nodes, runs
from fedq.relay.connection import Relay


@dataclass
class Steps:
    """Drives the steps with short calls; every argument that a test does not care about has a value."""

    relay: Relay
    run: int = 0
    token: str = "app-1"
    checkpoint: int = 0
    calls: int = 0
    entries: dict[str, tuple[str, str]] = field(default_factory=dict)

    def submit(self, **spec: object) -> int:
        return runs.submit(self.relay, runs.RunSpec(client_token=claims.new_token(), **spec))  # type: ignore[arg-type]

    def start(self, **spec: object) -> None:
        self.run = self.submit(**spec)
        assert runs.claim_run(self.relay, self.run, self.token).outcome is runs.Step.OK

    def push(
        self,
        *targets: str,
        body: bytes = b"hello",
        objects: tuple[str, ...] = (),
        ttl: float = 60.0,
        call: int | None = None,
        token: str | None = None,
        on_offline: str = "wait",
    ) -> messages.Pushed:
        number = self.calls if call is None else call
        if call is None:
            self.calls += 1
        out = [
            messages.Outgoing(self.message(number, i, node), node, 0, "train", "1", ttl, on_offline)
            for i, node in enumerate(targets)
        ]
        return messages.push(
            self.relay,
            self.run,
            self.token if token is None else token,
            self.checkpoint,
            number,
            [messages.Content(body, objects)],
            out,
        )

    def message(self, call: int, index: int, node: str) -> str:
        return messages.message_id(self.run, self.checkpoint, call, index, node)

    def pushed(self, node: str, **kwargs: object) -> messages.Instruction:
        """One new message, as its node reads it."""
        assert self.push(node, **kwargs).outcome is messages.Push.OK  # type: ignore[arg-type]
        return self.inbox(node)[-1]

    def inbox(self, node: str) -> list[messages.Instruction]:
        raw: Any = self.relay.redis.xrange(self.relay.keys.inbox(node))
        return [messages.parse_entry(entry, fields) for entry, fields in raw]

    def claim(self, node: str, m: messages.Instruction, token: str = "w-1", lease: float = 15.0) -> claims.Claimed:
        return claims.claim(self.relay, node, m.run, m.entry, m.message_id, token, lease=lease)

    def commit(
        self,
        node: str,
        m: messages.Instruction,
        token: str = "w-1",
        *,
        body: bytes = b"reply",
        objects: tuple[str, ...] = (),
        context: tuple[bytes, tuple[str, ...]] | None = (b"ctx", ()),
        ok: bool = True,
    ) -> claims.Committed:
        return claims.commit(
            self.relay, node, m.run, m.entry, m.message_id, token, ok=ok, body=body, objects=objects, context=context
        )

    def answered(self, node: str, m: messages.Instruction) -> messages.Answer | None:
        return messages.read_answers(self.relay, [(node, m.message_id)]).get(m.message_id)

    def pointers(self, node: str) -> int:
        return self.relay.redis.xlen(self.relay.keys.replies(node, self.run))

    def end(self) -> None:
        for run in runs.alive_runs(self.relay):
            runs.finish(self.relay, run, "", "stopped")
            cleanup.clean_run(self.relay, run)

    def forget(self) -> None:
        """Everything that is kept with ended runs goes too, as an operator would have it."""
        self.end()
        for info in runs.list_runs(self.relay):
            cleanup.remove_run(self.relay, info.run_id)
        for node in nodes.node_names(self.relay):
            nodes.forget(self.relay, node)
        self.relay.redis.delete(self.relay.keys.run_counter(), self.relay.keys.wake())


@contextmanager
def federation(relay: Relay) -> Iterator[Steps]:
    """Nodes a and b, online, and a run whose ServerApp is here."""
    driver = Steps(relay)
    for name in ("a", "b"):
        nodes.register(relay, name, nodes.NodeInfo(labels={"site": name}))
        nodes.beat(relay, name)
    driver.start()
    yield driver
    driver.forget()


@pytest.fixture(params=["fake", "real"])
def steps(request: pytest.FixtureRequest, relay: Relay) -> Iterator[Steps]:
    """Steps on fakeredis, and on a real server where a clean-up that forgets a key fails the test."""
    if request.param == "fake":
        relay = Relay("redis://nowhere")
        relay.redis = fakeredis.FakeRedis(protocol=2)
        relay.memory = lambda: (0, 0)  # type: ignore[method-assign]  # fakeredis has no INFO
    with federation(relay) as driver:
        yield driver
    relay.close()


@pytest.fixture
def real_steps(relay: Relay) -> Iterator[Steps]:
    """Steps on a real server, for what fakeredis does not have."""
    with federation(relay) as driver:
        yield driver
