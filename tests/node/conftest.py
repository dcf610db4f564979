"""SuperNodes as real processes, and the ServerApp's side of a run, driven by hand."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedq.apps import ArrayRecord, ConfigRecord, Error, RecordDict
from fedq.apps.digest import digest_of
from fedq.apps.wire import decode, decode_error, encode, encode_user_config, referenced
from fedq.node.settings import NodeSettings
from fedq.node.virtual import VirtualNodes, forget, register
from fedq.relay import bundles, claims, cleanup, messages, nodes, objects, runs
from fedq.relay.connection import Relay
from fedq.relay.jobs import FedqJob
from fedq.relay.messages import Answer
from tests.support.servers import RealServer
from tests.support.services import Service
from tests.support.waiting import wait_until

SERVE = Path(__file__).with_name("serve.py")

FORK_OR_ALL = ("fork", *(pytest.param(name, marks=pytest.mark.slow) for name in ("run", "inline")))
"""Isolations of a test that runs in the default one always, and in the others with --all."""


@dataclass
class HandRun:
    """One run whose ServerApp is the test."""

    relay: Relay
    folder: Path
    run: int
    token: str
    calls: int = 0
    sent: dict[str, str] = field(default_factory=dict)

    def config(self, **values: Any) -> RecordDict:
        """Content for the actions of ``app.py``."""
        return RecordDict({"config": ConfigRecord({"notes": str(self.notes_file), **values})})

    @property
    def notes_file(self) -> Path:
        return self.folder / f"notes-{self.run}"

    def notes(self) -> list[str]:
        """What the app wrote down."""
        return self.notes_file.read_text().splitlines() if self.notes_file.exists() else []

    def gate(self, name: str = "gate") -> str:
        """A FIFO that the action ``wait`` stops at."""
        path = self.folder / f"{name}-{self.run}"
        os.mkfifo(path)
        return str(path)

    def push(self, node: str, message_type: str, content: RecordDict, *, group: str = "1", ttl: float = 60.0) -> str:
        """Send one message; returns its id."""
        encoded = encode(content, inline_limit=objects.INLINE_LIMIT)
        objects.upload_shared(self.relay, self.run, self.token, "0", encoded.blobs)
        message = messages.message_id(self.run, 0, self.calls, 0, node)
        out = messages.Outgoing(message, node, 0, message_type, group, ttl)
        pushed = messages.push(
            self.relay,
            self.run,
            self.token,
            0,
            self.calls,
            [messages.Content(encoded.data, tuple(encoded.blobs))],
            [out],
        )
        assert pushed.outcome is messages.Push.OK, pushed
        self.calls += 1
        self.sent[message] = node
        return message

    def push_together(self, sent: Mapping[str, tuple[str, RecordDict]], *, ttl: float = 60.0) -> dict[str, str]:
        """Send a type and a content to each node, all in one step; the messages' ids by node."""
        ids = {node: messages.message_id(self.run, 0, self.calls, i, node) for i, node in enumerate(sent)}
        bodies = [encode(content, inline_limit=objects.INLINE_LIMIT) for _, content in sent.values()]
        assert not any(body.blobs for body in bodies)
        contents = [messages.Content(body.data) for body in bodies]
        out = [messages.Outgoing(ids[node], node, i, sent[node][0], "1", ttl) for i, node in enumerate(sent)]
        pushed = messages.push(self.relay, self.run, self.token, 0, self.calls, contents, out)
        assert pushed.outcome is messages.Push.OK, pushed
        self.calls += 1
        self.sent |= {message: node for node, message in ids.items()}
        return ids

    def arrays(self, *arrays: np.ndarray[Any, Any]) -> RecordDict:
        return RecordDict({"arrays": ArrayRecord(list(arrays))})

    def answer(self, message: str) -> Answer | None:
        return messages.read_answers(self.relay, [(self.sent[message], message)]).get(message)

    def wait_for(self, message: str, what: str = "the message is answered", *, timeout: float = 30.0) -> Answer:
        return wait_until(lambda: self.answer(message), what, timeout=timeout)

    def content(self, message: str, **kwargs: Any) -> RecordDict:
        """The reply of a message, which must not be an error."""
        answer = self.wait_for(message, **kwargs)
        assert answer.ok, decode_error(answer.body)
        wanted = referenced(answer.body)
        own = objects.fetch_node(self.relay, answer.node, [d for d in wanted if d in answer.own])
        shared = objects.fetch_shared(self.relay, [d for d in wanted if d not in answer.own])
        return decode(answer.body, {**own, **shared})

    def metrics(self, message: str, **kwargs: Any) -> Mapping[str, Any]:
        return dict(self.content(message, **kwargs).metric_records["metrics"])

    def error(self, message: str, **kwargs: Any) -> Error:
        """The error by which a message was answered."""
        answer = self.wait_for(message, **kwargs)
        assert not answer.ok
        return decode_error(answer.body)

    def claim(self, message: str) -> claims.ClaimState | None:
        return claims.read_claims(self.relay, self.sent[message]).get(message)

    def stop(self) -> None:
        runs.stop_run(self.relay, self.run)

    def remove(self) -> None:
        runs.finish(self.relay, self.run, "", "stopped")
        assert cleanup.remove_run(self.relay, self.run)


@dataclass
class Site:
    """A SuperNode, or a worker of one, as a process."""

    service: Service
    name: str
    relay: Relay

    def online(self) -> bool:
        return nodes.online(self.relay, [self.name])[self.name]

    def wait_online(self) -> Site:
        self.service.wait_until(self.online, f"{self.name} is online")
        return self

    def pid_of(self, child: str) -> int:
        """The process of the service's that it started last under a name: ``dispatcher``, ``worker-0``."""
        return int(re.findall(rf"started {child}, pid (\d+)", self.service.output())[-1])

    def jobs(self) -> list[FedqJob]:
        """Every job of the node that RQ knows, in the order of creation."""
        keys = [key.decode() for key in self.relay.redis.scan_iter(f"rq:job:{self.name}_*")]
        found = [FedqJob.fetch(key.removeprefix("rq:job:"), connection=self.relay.redis) for key in keys]
        return sorted(found, key=lambda job: job.created_at)

    def job_of(self, message: str, number: int = 1) -> FedqJob:
        return FedqJob.fetch(f"{self.name}_{message}_{number}", connection=self.relay.redis)

    def ended_job(self, message: str, number: int = 1) -> FedqJob:
        """The job, once RQ shows it as ended."""

        def ended() -> FedqJob | None:
            job = self.job_of(message, number)
            return job if job.get_status() in ("finished", "failed") else None

        return wait_until(ended, f"job {number} of the message has ended")


@dataclass
class Federation:
    """Runs and nodes on one server."""

    server: RealServer
    relay: Relay
    folder: Path
    isolation: str = "fork"
    sites: list[Site] = field(default_factory=list)
    hosts: list[VirtualNodes] = field(default_factory=list)
    runs: list[HandRun] = field(default_factory=list)

    def site(self, name: str = "clinic-a", *, what: str = "supernode", wait: bool = True, **settings: Any) -> Site:
        """Start a SuperNode."""
        given = {
            "name": name,
            "redis_url": self.server.url,
            "cache_dir": str(self.folder / "cache"),
            "grace": 5.0,
            "isolation": self.isolation,
            **settings,
        }
        log = self.folder / f"{what}-{name}-{len(self.sites)}.log"
        words = [sys.executable, str(SERVE), what, json.dumps(given)]
        # Mods of the operator's own are found there.
        service = Service(f"{what} {name}", words, log=log, environment={"PYTHONPATH": str(SERVE.parent / "owner")})
        site = Site(service.start(), name, self.relay)
        self.sites.append(site)
        return site.wait_online() if wait else site

    def known(self, name: str, virtual: int) -> list[str]:
        """Register virtual nodes whose service is yet to be started; their names."""
        self.hosts.append(VirtualNodes(NodeSettings(name, virtual=virtual)))
        register(self.relay, self.hosts[-1], nodes.NodeInfo())
        return list(self.hosts[-1])

    def run(self, app: Any = None, *, config: Mapping[str, Any] | None = None, **spec: Any) -> HandRun:
        """Submit a run of ``app.py``'s app and hold it as its ServerApp."""
        bundle = self.pack(app)
        digest = digest_of(bundle)
        objects.upload_bundle(self.relay, {digest: bundle})
        given = runs.RunSpec(
            client_token=claims.new_token(),
            client_bundle=digest,
            client_size=len(bundle),
            config=encode_user_config(dict(config or {})),
            **spec,
        )
        run, token = runs.submit(self.relay, given), claims.new_token()
        assert runs.claim_run(self.relay, run, token, lease=600).outcome is runs.Step.OK
        self.runs.append(HandRun(self.relay, self.folder, run, token))
        return self.runs[-1]

    def pack(self, app: Any = None) -> bytes:
        """An app as a bundle; bytes are taken for one."""
        if isinstance(app, bytes):
            return app
        if app is None:
            from tests.node.app import app
        return bundles.pack_object(app).data

    def close(self) -> None:
        for site in self.sites:
            if site.service.running:
                site.service.stop()
        self.sites.clear()
        for run in self.runs:
            run.remove()
        for host in self.hosts:
            forget(self.relay, host)
        for name in nodes.node_names(self.relay):
            nodes.forget(self.relay, name)
        self.relay.redis.delete(self.relay.keys.run_counter(), self.relay.keys.wake())
        # RQ keeps what it shows of ended jobs for a while.
        if kept := list(self.relay.redis.scan_iter("rq:*")):
            self.relay.redis.delete(*kept)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests marked ``every_isolation`` that do not choose one run in the default one, and with --all in each."""
    names = metafunc.fixturenames
    if metafunc.definition.get_closest_marker("every_isolation") and "federation" in names and "isolation" not in names:
        metafunc.parametrize("usual_isolation", FORK_OR_ALL, indirect=True)


@pytest.fixture
def usual_isolation(request: pytest.FixtureRequest) -> str:
    """Where a SuperNode runs ClientApps if the test does not say."""
    return str(getattr(request, "param", "fork"))


@pytest.fixture
def federation(server: RealServer, relay: Relay, tmp_path: Path, usual_isolation: str) -> Iterator[Federation]:
    """A federation on the session's server. At the end every service is stopped and every run removed."""
    made = Federation(server, relay, tmp_path, usual_isolation)
    try:
        yield made
    finally:
        made.close()


def open_gate(path: str) -> None:
    """Let the app that waits at the FIFO go on."""
    with open(path, "w") as gate:
        gate.write("go")
