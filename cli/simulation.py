"""A simulation for as long as a ``with`` block: a server, a SuperLink, and one service that stands for all nodes."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fedq.apps.errors import FedqError
from fedq.cli.federation import LocalFederation
from fedq.cli.problem import Problem
from fedq.cli.values import Value
from fedq.node.settings import NodeSettings
from fedq.node.virtual import VirtualNodes, forget, known_service
from fedq.relay.connection import Relay, without_password
from fedq.relay.embedded import EmbeddedServer
from fedq.relay.nodes import node_names, online
from fedq.relay.runs import alive_runs
from fedq.relay.superlink import Run

LABEL = "simulation"
"""The label of virtual nodes, by which a run on a shared server finds its own."""
CLEANED = 10.0
"""Seconds that the SuperLink may take to clear up a run before the nodes are taken off a shared server."""


@dataclass
class LocalSimulation(LocalFederation):
    """A SuperLink and ``nodes`` virtual nodes called ``<name>-<number>``, on ``slots`` workers of this machine.

    Args:
        name: that of the service behind the nodes, and what their names begin with.
        redis_url: a server that others use as well; None: a private one, which ends with the block.
        config: node_config that all nodes have.
        keep: whether the private server keeps its data (in ``directory``).

    Numbers and configs are as in :class:`LocalFederation` and in :mod:`fedq.apps.testing`.
    """

    isolation: str = "run"
    slots: int = 2
    runs: int = 1
    name: str = "node"
    redis_url: str | None = None
    config: Mapping[str, Value] = field(default_factory=dict)
    keep: bool = False
    run: Run | None = None

    @property
    def url(self) -> str:
        """The server's address."""
        return self.redis_url or super().url

    @property
    def server(self) -> str:
        """What the server is, for people."""
        return without_password(self.redis_url) if self.redis_url else super().server

    @property
    def virtual(self) -> VirtualNodes:
        """The virtual nodes."""
        return VirtualNodes(NodeSettings(self.name, virtual=self.nodes))

    @property
    def node_names(self) -> list[str]:
        """The nodes' names; they sort by number."""
        return list(self.virtual)

    @property
    def selector(self) -> dict[str, str]:
        """What the run has to select nodes by: nothing where there are no others."""
        return {LABEL: self.name} if self.redis_url else {}

    def _start(self) -> None:
        if self.directory is None:
            self.directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="fedq-simulation-")))
        self.directory.mkdir(parents=True, exist_ok=True)
        if self.redis_url is None:
            # Its data end with the simulation, unless they are to be kept.
            settings = {} if self.keep else {"appendonly": "no"}
            self._server = self._stack.enter_context(
                EmbeddedServer(self.directory / "server", fsync="everysec", settings=settings)
            )
        else:
            self._check_names()
        cache = self.directory / "cache"
        self.launch(
            "superlink",
            ["superlink", "--runs", str(self.runs), "--grace", "2", "--cache-dir", str(cache / "superlink")],
        )
        pairs = [word for key, value in self.config.items() for word in ("--config", f"{key}={_toml(value)}")]
        self.launch(
            "nodes",
            [
                *("supernode", "--name", self.name, "--virtual", str(self.nodes), "--slots", str(self.slots)),
                *("--isolation", self.isolation, "--label", f"{LABEL}={self.name}", "--grace", "2"),
                *("--cache-dir", str(cache / "nodes"), *pairs),
            ],
        )

    def _check_names(self) -> None:
        """On a shared server the names may be others': of nodes, or of a simulation that goes on."""
        with Relay.connect(self.url, client_name="fedq-simulate") as relay:
            left_over = known_service(relay, self.name) is not None and not online(relay, [self.name])[self.name]
            taken = set(self.node_names).intersection(node_names(relay))
        if taken and not left_over:
            raise Problem(
                f"there is a node {min(taken)} at {self.server} already; choose other names for the virtual nodes "
                f"with --name (they would be called {self.name}-0, {self.name}-1, …)"
            )

    def _stop(self) -> None:
        if self.redis_url is None:
            super()._stop()
            return
        try:
            self._stop_run()
        finally:
            super()._stop()
            with Relay.connect(self.url, client_name="fedq-simulate", retries=0) as relay:
                try:
                    forget(relay, self.virtual)
                except FedqError as error:
                    raise Problem(f"the virtual nodes {self.name}-… are still registered: {error}") from error

    def _stop_run(self) -> None:
        """On a shared server nothing of the run may be left waiting for nodes that are no more."""
        if self.run is None:
            return
        if not self.run.info().over:
            self.run.stop()
        if self.run.info().status == "failed":
            return  # it keeps what it has for a while, to be resumed
        give_up = time.monotonic() + CLEANED
        with Relay.connect(self.url, client_name="fedq-simulate") as relay:
            while self.run.run_id in alive_runs(relay) and time.monotonic() < give_up:
                time.sleep(0.05)


def _toml(value: Value) -> str:
    """A value of a config as a word that means the same."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return (
        repr(value) if isinstance(value, (int, float)) else '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    )
