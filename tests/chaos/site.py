"""A federation of real processes on a server of its own, and where to find each of them."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from fedq.relay.connection import Relay
from fedq.relay.nodes import node_names, online
from tests.support import RealServer, Service, wait_until
from tests.support.proxy import CuttingProxy
from tests.support.services import SCRIPTS

STARTED = re.compile(r"started ([\w-]+), pid (\d+)")
SERVER_SETTINGS = {"auto-aof-rewrite-percentage": "0", "maxmemory-policy": "noeviction"}
AWAY = (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError)


@dataclass(frozen=True)
class Held:
    """A message that a worker is at."""

    message: str
    token: str
    worker: int
    """The worker's process."""


class Site:
    """``fedq superlink`` and a ``fedq supernode`` per node. ``with`` starts them and waits until all are online.

    ``between`` makes what stands between the services and the server, of the folder and the server's address.
    """

    def __init__(
        self,
        folder: Path,
        nodes: int,
        isolation: str,
        slots: int = 2,
        listen: Literal["unix", "loopback"] = "unix",
        between: Callable[[Path, str], CuttingProxy] | None = None,
    ) -> None:
        self.folder = folder
        self.names = [f"node-{i}" for i in range(nodes)]
        self.isolation = isolation
        self.slots = slots
        self.scratch = folder / "tmp"
        self.server = RealServer(folder / "server", fsync="always", listen=listen, settings=SERVER_SETTINGS)
        self.between = between
        self.proxy: CuttingProxy | None = None
        self.services: dict[str, Service] = {}
        self.client: Any = redis.Redis()
        self.stopped: set[int] = set()
        """Processes that were sent SIGSTOP and not yet SIGCONT."""
        self.sheltered = ""
        """A node that is left alone, with the server, until a zombie of it is back."""
        self._heard: dict[str, str] = {}

    # -- from start to end --------------------------------------------------------------------------------------------

    def __enter__(self) -> Site:
        self.scratch.mkdir(parents=True)
        self.server.start()
        self.client = redis.Redis.from_url(
            self.server.url, protocol=2, socket_timeout=2.0, retry=Retry(NoBackoff(), 0), client_name="chaos"
        )
        try:
            if self.between is not None:
                self.proxy = self.between(self.folder, self.server.url)
                self.proxy.__enter__()
            self.start("superlink")
            for name in self.names:
                self.start(name)
            wait_until(self.complete, lambda: f"all services are there\n{self.said()}", timeout=90, ignore=AWAY)
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def address(self) -> str:
        """Where the services find the server."""
        return f"unix://{self.proxy.path}" if self.proxy is not None else self.server.url

    def start(self, name: str) -> None:
        """Start (again) the SuperLink or the SuperNode of that name."""
        service = self.services.get(name)
        if service is None:
            words = ["superlink", "--runs", "2"]
            if name in self.names:
                number = self.names.index(name)
                words = ["supernode", "--name", name, "--slots", str(self.slots), "--isolation", self.isolation]
                words += ["--config", f"partition-id={number}", "--config", f"num-partitions={len(self.names)}"]
            words += ["--grace", "5s", "--cache-dir", str(self.folder / "cache" / name)]
            environment = {"FEDQ_REDIS_URL": self.address, "HOME": str(self.folder), "TMPDIR": str(self.scratch)}
            service = Service(
                name, [str(SCRIPTS / "fedq"), *words], log=self.folder / f"{name}.log", environment=environment
            )
            self.services[name] = service
        service.start()

    def complete(self) -> bool:
        """Whether every service has all its processes, and every node is online."""
        if any(len(self.children(name)) < 3 for name in self.services):
            return False
        with Relay.connect(self.server.url) as relay:
            return all(online(relay, self.names).values()) and set(node_names(relay)) == set(self.names)

    def stop(self) -> list[str]:
        """End every service as a service manager does; what went wrong with that."""
        self.resume_all()
        wrong = []
        for name, service in reversed(self.services.items()):
            try:
                if (status := service.stop(timeout=60)) != 0:
                    wrong.append(f"{name} ended with status {status} after SIGTERM")
            except AssertionError as error:
                wrong.append(str(error))
        return wrong

    def kill(self) -> None:
        self.resume_all()
        for service in self.services.values():
            service.kill()
        if self.proxy is not None:
            self.proxy.__exit__(None, None, None)
            self.proxy = None
        self.client.close()
        self.server.stop()

    def resume_all(self) -> None:
        for pid in list(self.stopped):
            self.resume(pid)

    def said(self) -> str:
        """The last words of every service."""
        return "\n".join(f"--- {name}:\n{service.output()[-3000:]}" for name, service in self.services.items())

    @property
    def exposed(self) -> list[str]:
        """The nodes that may be hit."""
        return [name for name in self.names if name != self.sheltered]

    # -- processes ----------------------------------------------------------------------------------------------------

    def children(self, service: str) -> dict[str, int]:
        """The living children of a service's supervisor, by name."""
        supervisor = self.services[service].pid
        found = {}
        # The log grows for hours; who lives now was started lately, or is found further back.
        for match in STARTED.finditer(self.services[service].output()):
            with contextlib.suppress(psutil.Error):
                if psutil.Process(int(match[2])).ppid() == supervisor:
                    found[match[1]] = int(match[2])
        return found

    def workers(self, service: str) -> dict[str, int]:
        """The workers among them."""
        return {name: pid for name, pid in self.children(service).items() if name.startswith(("worker", "serverapp"))}

    def horses(self, service: str) -> list[int]:
        """The processes in which apps run, or that wait to do so."""
        return [pid for worker in self.workers(service).values() for pid in self.executing(worker)]

    def executing(self, worker: int) -> list[int]:
        """What descends from a worker: what its apps run in, and what that is forked from."""
        with contextlib.suppress(psutil.Error):
            return [child.pid for child in psutil.Process(worker).children(recursive=True)]
        return []

    def signal(self, pid: int, number: int) -> bool:
        """Whether there was such a process."""
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return False
        return True

    def pause(self, pid: int) -> bool:
        self.stopped.add(pid)
        return self.signal(pid, signal.SIGSTOP)

    def resume(self, pid: int) -> None:
        self.stopped.discard(pid)
        self.signal(pid, signal.SIGCONT)

    # -- the run ------------------------------------------------------------------------------------------------------

    def checkpoint(self, run: int) -> int | None:
        """How far the run is, or None while the server is away."""
        found: int | None = self._ask(lambda: int(self.client.hget(f"fedq:{{0}}:run:{run}", "checkpoint") or 0))
        return found

    def status(self, run: int) -> str | None:
        found: str | None = self._ask(lambda: (self.client.hget(f"fedq:{{0}}:run:{run}", "status") or b"gone").decode())
        return found

    def replies(self, run: int, node: str) -> str | None:
        """A text that changes with each answer of the node."""
        key = f"fedq:{{0}}:node:{node}:replies:{run}"
        found: str | None = self._ask(lambda: str(self.client.xinfo_stream(key)["last-generated-id"]))
        return found

    def held(self, node: str) -> list[Held]:
        """What the workers of a node hold claims of; nothing while the server is away."""
        found = []
        for message, value in (self._ask(lambda: self.client.hgetall(f"fedq:{{0}}:node:{node}:claims")) or {}).items():
            _, token, _, worker = value.decode().split("|")
            if token:
                found.append(Held(message.decode(), token, int(worker.rpartition(":")[2])))
        return found

    def busy(self, node: str) -> bool:
        """Whether a worker of the node holds a claim."""
        return bool(self.held(node))

    def listen(self, run: int, seconds: float) -> None:
        """Wait until the run tells something or a node answers, ``seconds`` at most."""
        streams = [f"fedq:{{0}}:run:{run}:events", *(f"fedq:{{0}}:node:{name}:replies:{run}" for name in self.names)]
        cursors = {stream: self._heard.get(stream, "0") for stream in streams}
        try:
            raw: Any = self.client.xread(cursors, block=max(1, int(seconds * 1000)))
        except (*AWAY, redis.exceptions.ResponseError):
            time.sleep(min(seconds, 0.01))
            return
        self._heard |= {stream.decode(): entries[-1][0].decode() for stream, entries in raw}

    def _ask(self, question: Any) -> Any:
        try:
            return question()
        except (*AWAY, redis.exceptions.ResponseError):
            return None

    def connections(self) -> list[dict[str, Any]]:
        """What the server knows of its clients, the driver left out."""
        found = self._ask(lambda: self.client.client_list()) or []
        return [c for c in found if c.get("name", "").startswith("fedq") or not c.get("name")]
