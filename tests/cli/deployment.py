"""A federation for tests of the command line: its services are started by the commands themselves."""

from __future__ import annotations

import os
import subprocess
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis as redis_py

from fedq.relay.connection import Relay
from fedq.relay.nodes import node_names, online
from tests.support import RealServer, Service, wait_until
from tests.support.services import SCRIPTS

NODES = ("a", "b", "c")
RUNS = 3


class Deployment:
    """A server on loopback with a password, ``fedq superlink`` and a ``fedq supernode`` for each of ``NODES``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server = RealServer(folder / "server", listen="loopback")
        self.services: dict[str, Service] = {}

    @property
    def url(self) -> str:
        """The server's address with its password."""
        return self.server.url

    def start(self) -> None:
        self.server.start()
        self.serve("superlink", "superlink", "--runs", str(RUNS), "--grace", "2s")
        for number, name in enumerate(NODES):
            self.serve_node(name, number)
        self.wait_until_complete()

    def wait_until_complete(self) -> None:
        """Wait until every node is online and every slot has its worker: from then on no service starts a process
        that stays."""
        queues = {"_serverapps": RUNS, **dict.fromkeys(NODES, 1)}

        def complete() -> bool:
            with self.client() as client:
                workers = {queue: client.scard(f"rq:workers:{queue}") for queue in queues}
            return self.online() == list(NODES) and workers == queues

        wait_until(complete, lambda: f"all nodes and workers are there; {self.output()}", timeout=60)

    def serve(self, name: str, *words: str, **environment: str) -> Service:
        """Start ``fedq WORDS`` as a service of this federation, with these variables too."""
        service = Service(
            name,
            [str(SCRIPTS / "fedq"), *words],
            log=self.folder / f"{name}.log",
            environment={"FEDQ_REDIS_URL": self.url, "HOME": str(self.folder), **environment},
        )
        self.services[name] = service.start()
        return service

    def serve_node(self, name: str, number: int) -> Service:
        """Start the SuperNode of one of ``NODES``."""
        return self.serve(
            *(name, "supernode", "--name", name, "--label", f"site={name}", "--grace", "2s"),
            *("--config", f"partition-id={number}", "--config", f"num-partitions={len(NODES)}"),
        )

    def fedq(self, *words: object, timeout: float = 60.0) -> str:
        """What a command prints; it must succeed."""
        done = subprocess.run(
            [str(SCRIPTS / "fedq"), *(str(word) for word in words)],
            env={**os.environ, "FEDQ_REDIS_URL": self.url},
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def online(self) -> list[str]:
        """The nodes with a heartbeat, sorted."""
        with Relay.connect(self.url) as relay:
            return sorted(name for name, there in online(relay, node_names(relay)).items() if there)

    def output(self) -> str:
        """The last words of every service, for a failed test."""
        return "\n".join(f"--- {name}:\n{service.output()[-1500:]}" for name, service in self.services.items())

    def stop(self) -> None:
        try:
            for service in reversed(self.services.values()):
                if service.running:
                    service.stop()
        finally:
            for service in self.services.values():
                service.kill()
            self.server.stop()

    def client(self) -> redis_py.Redis:
        """A client of the server; the caller closes it."""
        return self.server.client()


@contextmanager
def deployment(folder: Path) -> Iterator[Deployment]:
    """A federation for as long as the block."""
    running = Deployment(folder)
    try:
        running.start()
        yield running
    finally:
        running.stop()


HEADER = """
import numpy as np
from fedq.apps import ArrayRecord, ClientApp, ConfigRecord, Message, MetricRecord, RecordDict, ServerApp
from fedq.apps.strategy import FedAvg

app = {kind}()
"""

GOOD_SERVER = """
@app.main()
def main(grid, context):
    config = context.run_config
    nodes = int(config["nodes"])
    strategy = FedAvg(
        fraction_evaluate=0.0, min_train_nodes=min(2, nodes), min_available_nodes=nodes, node_timeout=2.0
    )
    arrays, timeout = ArrayRecord([np.zeros(3)]), float(config["timeout"])
    strategy.start(grid, arrays, num_rounds=int(config["num-rounds"]), timeout=timeout)
"""

GOOD_CLIENT = """
@app.train()
def train(message, context):
    arrays = message.content["arrays"].to_numpy_ndarrays()
    metrics = MetricRecord({"loss": 1.0, "num-examples": 1})
    return Message(RecordDict({"arrays": ArrayRecord([arrays[0] + 1]), "metrics": metrics}), reply_to=message)
"""


@contextmanager
def running(command: str, *words: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A running ``fedq COMMAND``; killed at the end of the block."""
    with subprocess.Popen(
        [str(SCRIPTS / "fedq"), command, *words],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def write_project(
    folder: Path,
    *,
    server: str = GOOD_SERVER,
    client: str = GOOD_CLIENT,
    package: str = "app_under_test",
    config: str = "",
) -> Path:
    """Write a project whose apps consist of these functions; returns its directory."""
    project = folder / package
    code = project / package
    code.mkdir(parents=True)
    (code / "__init__.py").write_text("")
    (code / "server_app.py").write_text(HEADER.format(kind="ServerApp") + textwrap.dedent(server))
    (code / "client_app.py").write_text(HEADER.format(kind="ClientApp") + textwrap.dedent(client))
    (project / "pyproject.toml").write_text(
        f'[project]\nname = "{package}"\nversion = "1"\n\n'
        f'[tool.fedq.app.components]\nserverapp = "{package}.server_app:app"\n'
        f'clientapp = "{package}.client_app:app"\n\n'
        f"[tool.fedq.app.config]\nnum-rounds = 1\nnodes = 3\ntimeout = 20.0\n{config}\n"
    )
    return project
