"""The floors: what the machine, Redis and RQ give to whoever uses nothing else.

A floor does the work that a federated round cannot do without, on the same server and with as many processes, and
leaves out all that makes it a federation: Contexts, fences, answers, digests, averages.
"""

from __future__ import annotations

import os
import selectors
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import redis
from rq import Queue, Worker
from rq.results import Result

from benchmarks.floor_client import keys, read, write
from benchmarks.launch import Helper
from benchmarks.noop import noop

WAIT = 120.0
"""Seconds after which a floor that does not come to an end is given up."""


class Floor(Protocol):
    """Something to compare with."""

    name: str

    def seconds(self, rounds: int) -> float:
        """Do the work of so many rounds, back to back; the seconds for one of them."""

    @property
    def pids(self) -> list[int]:
        """Its processes, the measuring one left out."""


class RqFloor:
    """``nodes`` worker processes of bare RQ, each with its own queue; a round is a job for each, which does nothing.

    Args:
        isolation: ``fork`` takes ``rq.Worker``, others ``rq.SimpleWorker``.
    """

    def __init__(self, url: str, nodes: int, isolation: str, folder: Path) -> None:
        kind = "fork" if isolation == "fork" else "simple"
        self.name = "rq.Worker" if kind == "fork" else "rq.SimpleWorker"
        self._stack = ExitStack()
        self._client = self._stack.enter_context(redis.Redis.from_url(url))
        names = [f"floor-{kind}-{number}" for number in range(nodes)]
        self.queues = [Queue(name, connection=self._client) for name in names]
        self._workers = [
            self._stack.enter_context(
                Helper(
                    name, [sys.executable, "-m", "benchmarks.floor_worker", url, name, kind], log=folder / f"{name}.log"
                )
            )
            for name in names
        ]
        give_up = time.monotonic() + WAIT
        while any(Worker.count(queue=queue) == 0 for queue in self.queues):
            for worker in self._workers:
                if worker.process.poll() is not None:
                    worker.receive()
            if time.monotonic() > give_up:
                raise RuntimeError("the workers of bare RQ do not start")
            time.sleep(0.02)

    @property
    def pids(self) -> list[int]:
        return [worker.process.pid for worker in self._workers]

    def seconds(self, rounds: int) -> float:
        began = time.perf_counter()
        for _ in range(rounds):
            self._wait([queue.enqueue(noop, result_ttl=60) for queue in self.queues])
        return (time.perf_counter() - began) / rounds

    def rate(self, jobs: int) -> float:
        """Jobs a second when all are enqueued at once, from the first enqueue to the last result."""
        began = time.perf_counter()
        per_queue = jobs // len(self.queues)
        made = []
        for queue in self.queues:
            data = [Queue.prepare_data(noop, result_ttl=60) for _ in range(per_queue)]
            made += queue.enqueue_many(data)
        # A queue is worked off in order, so that waiting for the first ones costs nothing.
        self._wait(made)
        return len(made) / (time.perf_counter() - began)

    @staticmethod
    def _wait(jobs: list[Any]) -> None:
        for job in jobs:
            result = job.latest_result(timeout=int(WAIT))
            if result is None or result.type is not Result.Type.SUCCESSFUL:
                raise RuntimeError(f"the job {job.id} of bare RQ came to nothing")

    def close(self) -> None:
        """End the workers."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class BytesFloor:
    """The bytes of a round through the server with bare redis-py, in chunks of 4 MiB, each payload one pipeline.

    One write; then ``nodes`` client processes each read that and write as much of their own; each of these is read as
    soon as it is there.
    """

    name = "redis-py"

    def __init__(self, url: str, nodes: int, nbytes: int, folder: Path) -> None:
        self._stack = ExitStack()
        self._client = self._stack.enter_context(redis.Redis.from_url(url))
        self._payload = memoryview(os.urandom(nbytes))
        self._clients = [
            self._stack.enter_context(
                Helper(
                    f"floor-client-{number}",
                    [sys.executable, "-m", "benchmarks.floor_client", url],
                    log=folder / f"floor-client-{number}.log",
                )
            )
            for number in range(nodes)
        ]
        for client in self._clients:
            client.ask({"bytes": nbytes})

    @property
    def pids(self) -> list[int]:
        return [client.process.pid for client in self._clients]

    def seconds(self, rounds: int) -> float:
        return sum(self._round() for _ in range(rounds)) / rounds

    def _round(self) -> float:
        nbytes = len(self._payload)
        names = [f"floor-bytes:{number}" for number in range(len(self._clients))]
        began = time.perf_counter()
        write(self._client, "floor-bytes", self._payload)
        with selectors.DefaultSelector() as ready:
            for client, name in zip(self._clients, names, strict=True):
                client.send({"read": "floor-bytes", "write": name})
                assert client.process.stdout is not None
                ready.register(client.process.stdout, selectors.EVENT_READ, (client, name))
            while ready.get_map():
                for key, _ in ready.select(WAIT):
                    client, name = key.data
                    ready.unregister(key.fileobj)
                    client.receive()
                    read(self._client, name, nbytes)
        seconds = time.perf_counter() - began
        self._client.unlink(*(key for name in ("floor-bytes", *names) for key in keys(name, nbytes)))
        return seconds

    def close(self) -> None:
        """End the client processes."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class SumOfFloors:
    """A round of which neither part can be neglected: the jobs and then the bytes."""

    def __init__(self, *floors: Floor) -> None:
        self._floors = floors
        self.name = " + ".join(floor.name for floor in floors)

    @property
    def pids(self) -> list[int]:
        return [pid for floor in self._floors for pid in floor.pids]

    def seconds(self, rounds: int) -> float:
        return sum(floor.seconds(rounds) for floor in self._floors)
