"""A worker of the toy, as a process of its own."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py

from fedq.relay.jobs import FedqJob, enqueue, fetch
from tests.support import RealServer, wait_until

ROOT = Path(__file__).parents[3]
Start = Callable[..., "Federation"]


class Federation:
    """A running worker of the toy and what one may ask and tell it."""

    def __init__(self, server: RealServer, **settings: Any) -> None:
        self.server = server
        self.settings = {"url": server.url, "isolation": "fork", **settings}
        self.client = server.client()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.relay.jobs.toy", json.dumps(self.settings)], cwd=ROOT
        )

    def put(self, do: str, name: str | None = None, **args: Any) -> str:
        """Enqueue what the toy is to do; the job's id."""
        name = name or uuid.uuid4().hex[:8]
        job_id = f"toy_{name}_1"
        assert enqueue("toy", self.client, job_id, {"do": do, "name": name, **args}, description=f"{do} {name}")
        return job_id

    def lines(self, key: str) -> list[str]:
        """What the toy wrote down."""
        return [line.decode() for line in self.client.lrange(f"toy:{key}", 0, -1)]

    def executed(self) -> list[dict[str, Any]]:
        """The executions, in order."""
        return [json.loads(line) for line in self.lines("executed")]

    def job(self, job_id: str) -> FedqJob:
        """The job as it stands now."""
        job = fetch(job_id, self.client)
        assert job is not None, f"no job {job_id}"
        return job

    def wait_status(self, job_id: str, status: str, *, timeout: float = 15.0) -> FedqJob:
        """Wait until RQ shows the job in that status."""
        wait_until(
            lambda: self.job(job_id).get_status(refresh=False).value == status,
            lambda: f"job {job_id} is {status}; it is {self.job(job_id).get_status(refresh=False).value}",
            timeout=timeout,
            ignore=(redis_py.ConnectionError, redis_py.TimeoutError),
        )
        return self.job(job_id)

    def wait_executed(self, count: int = 1) -> dict[str, Any]:
        """Wait for the ``count``-th execution."""
        wait_until(lambda: len(self.executed()) >= count, f"execution {count} has begun")
        return self.executed()[count - 1]

    def stop(self) -> int:
        """SIGTERM, and wait for the end."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

    def close(self) -> None:
        """Stop it, and remove what RQ keeps of it."""
        if self.process.poll() is None:
            self.stop()
        with contextlib.suppress(redis_py.ConnectionError):
            self.client.delete(*self.client.keys("rq:*") or ["none"])
        self.client.close()


@pytest.fixture
def start(server: RealServer) -> Iterator[Start]:
    """Starts a worker with the given settings; ended after the test."""
    started: list[Federation] = []

    def begin(on: RealServer | None = None, **settings: Any) -> Federation:
        federation = Federation(on or server, **settings)
        started.append(federation)
        return federation

    yield begin
    for federation in started:
        federation.close()
