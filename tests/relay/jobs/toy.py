"""A toy for workers to work on: assignments that do what a test asks for.

What an assignment does stands in the job's arguments; what happens is written down in Redis lists of the toy's own:

    toy:executed   one line for each execution: name, pid, parent's pid, group, and where things were preloaded for it
    toy:done       names of executions that came to their end
    toy:died       "name kind detail" for each death that the worker reported
    toy:released   names of what was released
    toy:renewed    names, one for each renewal
    toy:over       set of groups whose run is over
    toy:stop       set of names for which a renewal answers STOP
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import redis

from fedq.relay.jobs import (
    AppWorker,
    Assignment,
    Cause,
    ChildContext,
    ChildSpec,
    FedqJob,
    Outcome,
    Supervisor,
    Timing,
    Verdict,
    Work,
    app_finished,
    app_started,
)

PRELOADED: list[int] = []
"""The processes in which this one, or one that it descends from, was prepared for what is forked there."""


class Toy(Assignment):
    """One assignment."""

    kind = "clientapp"
    run_id = 1

    def __init__(self, client: redis.Redis, args: Mapping[str, Any]) -> None:
        self.client = client
        self.args = dict(args)
        self.name = str(args["name"])
        self.group = str(args.get("group", "1"))
        self.time_limit: float | None = args.get("limit")

    def describe(self) -> dict[str, Any]:
        return self.args

    def execute(self) -> Outcome:
        client = self.client
        line = {
            "name": self.name,
            "pid": os.getpid(),
            "parent": os.getppid(),
            "group": self.group,
            "preloaded": PRELOADED,
        }
        client.rpush("toy:executed", json.dumps(line))
        app_started()
        match self.args["do"]:
            case "nothing":
                pass
            case "wait":  # until somebody says so
                while not client.exists(f"toy:go:{self.name}"):
                    time.sleep(0.01)
            case "sleep":
                time.sleep(3600)
            case "loop":
                while True:
                    pass
            case "deaf":  # ignores SIGTERM, and so does its child, and a grandchild in a session of its own
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                for options in ({}, {"start_new_session": True}):
                    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"], **options)
                    client.rpush("toy:children", child.pid)
                time.sleep(3600)
            case "children":
                for options in ({}, {"start_new_session": True}):
                    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"], **options)
                    client.rpush("toy:children", child.pid)
                    child.returncode = 0  # forget it
            case "crash":
                ctypes.string_at(0)
            case "exit":
                os._exit(int(self.args.get("code", 3)))
            case "raise":
                raise RuntimeError("let through")
            case "late":  # the app is done, what follows takes longer than its limit
                app_finished()
                time.sleep(float(self.args["seconds"]))
            case "linger":  # committed, but does not come back
                client.sadd("toy:committed", self.name)
                time.sleep(3600)
            case "signals":
                client.set(
                    "toy:signals", json.dumps([repr(signal.getsignal(n)) for n in (signal.SIGTERM, signal.SIGINT)])
                )
            case "close":  # what a careless daemon library does
                os.closerange(3, 256)
                time.sleep(3600)
            case "error":
                return Outcome("error 2", {"attempt": 1}, failure="Traceback of the app")
        client.rpush("toy:done", self.name)
        return Outcome("committed", {"attempt": 1, "bytes": 5}, description=self.args.get("description"))

    def renew(self) -> Verdict:
        self.client.rpush("toy:renewed", self.name)
        if self.client.sismember("toy:stop", self.name):
            return Verdict.STOP
        return Verdict.DONE if self.client.sismember("toy:committed", self.name) else Verdict.OK

    def died(self, cause: Cause) -> str:
        self.client.rpush("toy:died", f"{self.name} {cause.kind.value} {cause.detail}")
        return f"died: {cause.detail}"

    def released(self) -> str:
        self.client.rpush("toy:released", self.name)
        return "released"


class ToyWork(Work):
    """Makes toys. Its connections are its own."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.client = redis.Redis.from_url(url)

    def assignment(self, job: FedqJob) -> Toy:
        return Toy(self.client, job.request())

    def rebuild(self, description: Mapping[str, Any]) -> Toy:
        return Toy(self.client, description)

    def alive(self, group: str) -> bool:
        return not self.client.sismember("toy:over", group)

    def preload(self) -> Iterator[None]:
        for _ in range(3):
            PRELOADED.append(os.getpid())
            yield

    def forked(self) -> None:
        self.client = redis.Redis.from_url(self.url)


def serve(settings: dict[str, Any], context: ChildContext | None = None) -> None:
    client = redis.Redis.from_url(settings.get("rq_url", settings["url"]))
    worker = AppWorker(
        ToyWork(settings["url"]),
        queue="toy",
        connection=client,
        isolation=settings["isolation"],
        grace=settings.get("grace", 10.0),
        timing=Timing(**settings.get("timing", {})),
        maintenance_interval=settings.get("maintenance", 60),
        context=context,
    )
    worker.work()


def run(settings: dict[str, Any]) -> int:
    """Be a worker, or a supervisor with one."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(process)d %(name)s %(message)s", force=True)
    if settings.get("supervised"):
        return Supervisor(
            [ChildSpec("worker", lambda context: serve(settings, context))], grace=settings.get("grace", 10.0) + 5
        ).run()
    serve(settings)
    return 0
