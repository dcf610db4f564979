"""A worker of the toy, as a process of its own."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import signal
import traceback
import uuid
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis as redis_py

from fedq.relay.jobs import FedqJob, enqueue, fetch
from fedq.relay.jobs.processes import reset_signals
from tests.relay.jobs import toy
from tests.support import RealServer, wait_until

Start = Callable[..., "Federation"]


class Forked:
    """A process forked from the test's: a new interpreter and its imports would take longer than most tests."""

    def __init__(self, body: Callable[[], int]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # NumPy's threads are idle
            self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                os.setpgid(0, 0)
                faulthandler.disable()
                reset_signals()
                status = body()
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        self.status: int | None = None

    def poll(self) -> int | None:
        """Its exit status (negative: the signal), None while it runs."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status

    def wait(self, timeout: float) -> int:
        """Wait for its end; the exit status."""
        wait_until(lambda: self.poll() is not None, f"process {self.pid} has ended", timeout=timeout)
        assert self.status is not None
        return self.status

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)


class Federation:
    """A running worker of the toy and what one may ask and tell it."""

    def __init__(self, server: RealServer, **settings: Any) -> None:
        self.server = server
        self.settings = {"url": server.url, "isolation": "fork", **settings}
        self.client = server.client()
        self.process = Forked(lambda: toy.run(self.settings))

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
