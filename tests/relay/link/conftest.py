"""Runs, nodes and SuperLinks on one real server, tidied up behind each test."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fedq.apps.wire import encode_user_config
from fedq.relay import claims, cleanup, nodes, runs
from fedq.relay.connection import Relay
from fedq.relay.events import Event, follow
from fedq.relay.grid import RedisGrid
from fedq.relay.superlink import SuperLink
from tests.conftest import lasting_keys
from tests.relay.link.responder import Answer, Responder
from tests.support import RealServer
from tests.support.services import Service


@dataclass
class Setting:
    """What a test of this folder starts from."""

    server: RealServer
    relay: Relay
    folder: Path
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def url(self) -> str:
        return self.server.url

    def node(self, name: str, answer: Answer | None = None, **labels: str) -> Responder:
        """A node that is online and answers."""
        made = Responder(self.url, name, answer, folder=self.folder / "apps", labels=labels)
        return self.stack.enter_context(made)

    def link(self) -> SuperLink:
        return self.stack.enter_context(SuperLink.connect(self.url))

    def superlink(self, *, slots: int = 2, grace: float = 2.0) -> Service:
        """A SuperLink as a process of its own."""
        return self.stack.enter_context(superlink(self.url, self.folder, slots=slots, grace=grace))

    def submitted(self, config: dict[str, Any] | None = None, **spec: Any) -> int:
        """A run without apps, whose ServerApp is the test."""
        given = runs.RunSpec(client_token=claims.new_token(), config=encode_user_config(config or {}), **spec)
        return runs.submit(self.relay, given)

    def grid(self, run: int | None = None, *, lease: float = 600.0, **spec: Any) -> RedisGrid:
        """The Grid of an attempt of a run, a new one by default."""
        number = run if run is not None else self.submitted(**spec)
        token = claims.new_token()
        claimed = runs.claim_run(self.relay, number, token, lease=lease)
        assert claimed.outcome is runs.Step.OK, claimed
        return self.stack.enter_context(contextlib.closing(RedisGrid(self.relay, claimed, token)))

    def told(self, grid: RedisGrid, kind: str | None = None) -> list[Event]:
        """The run's events so far."""
        found = follow(self.relay, grid.run_id, wait=False)
        return [event for event in found if kind is None or event.kind == kind]

    def interrupt(self, grid: RedisGrid) -> RedisGrid:
        """What follows when the process of a ServerApp is lost: the next attempt's Grid."""
        runs.release_run(self.relay, grid.run_id, grid.token)
        return self.grid(grid.run_id)

    def close(self) -> None:
        self.stack.close()
        relay = self.relay
        for run in runs.alive_runs(relay):
            runs.finish(relay, run, "", "stopped")
        for info in runs.list_runs(relay):
            assert cleanup.remove_run(relay, info.run_id)
        for name in nodes.node_names(relay):
            nodes.forget(relay, name)
        relay.redis.delete(relay.keys.run_counter(), relay.keys.wake())

    def forget_services(self) -> None:
        """What SuperLinks leave that were killed, and what RQ shows of ended jobs for a while."""
        relay = self.relay
        relay.redis.delete(relay.keys.links())
        if kept := list(relay.redis.scan_iter("rq:*")):
            relay.redis.delete(*kept)


def superlink(url: str, folder: Path, *, slots: int = 2, grace: float = 2.0) -> Service:
    words = ["superlink", "--runs", str(slots), "--grace", str(grace)]
    environment = {"FEDQ_REDIS_URL": url, "XDG_CACHE_HOME": str(folder / "cache")}
    command = [sys.executable, "-m", "fedq.cli", *words]
    return Service("superlink", command, log=folder / "superlink.log", environment=environment)


@pytest.fixture
def setting(server: RealServer, relay: Relay, tmp_path: Path) -> Iterator[Setting]:
    """A clean server. At the end everything is removed, and what a clean-up forgets fails the test."""
    made = Setting(server, relay, tmp_path)
    try:
        yield made
    finally:
        made.close()
        made.forget_services()


@pytest.fixture(scope="module")
def served_server(server_kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    """A server with a SuperLink of two slots, for all tests of a module."""
    with RealServer(kind=server_kind or None) as server:  # type: ignore[arg-type]
        with superlink(server.url, tmp_path_factory.mktemp("superlink"), slots=2) as service:
            # Its processes are none that a test leaves behind.
            service.wait_until(lambda: service.output().count(" is ready") == 2, "both slots are there")
            service.wait_until(lambda: "housekeeping is done here" in service.output(), "somebody keeps house")
            yield server


@pytest.fixture
def served(served_server: RealServer, tmp_path: Path) -> Iterator[Setting]:
    """A setting with a SuperLink. At the end nothing of the relay may be left but what belongs to the service."""
    with Relay.connect(served_server.url) as relay:
        made = Setting(served_server, relay, tmp_path)
        try:
            yield made
        finally:
            made.close()
        service = {relay.keys.housekeeper(), relay.keys.links(), relay.keys.wake()}
        left = [name for name in lasting_keys(served_server) if name.startswith(relay.keys.base)]
        assert not set(left) - service
