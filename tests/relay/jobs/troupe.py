"""Children for the supervisor's tests.

Settings name the children: ``{"children": [{"name": …, "do": …, "restart": …, "events": …, "last": …}], "grace": …,
"log": path}``. Each child appends JSON lines to the log.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from typing import Any

from fedq.relay.jobs import Backoff, ChildContext, ChildSpec, Fatal, Supervisor
from fedq.relay.jobs.processes import poll

LOG = ""


def note(**line: Any) -> None:
    """One line, in one write."""
    with open(LOG, "a") as file:
        file.write(json.dumps({"pid": os.getpid(), **line}) + "\n")


def target(do: str, context: ChildContext) -> None:
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: ended.append(number))
    note(name=context.name, what="begun")
    match do:
        case "fail":
            raise RuntimeError("as was to be expected")
        case "fatal":
            raise Fatal("another process serves this name")
        case "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        case "tell":
            context.send("listener", {"free": 1})
        case "brood":  # a child in a session of its own, which only the supervisor can find once this one is dead
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"], start_new_session=True)
            child.returncode = 0
            note(name=context.name, what="child", child=child.pid)
        case "return":
            return
    while not ended:
        if poll([context.events], 0.05):
            lines = context.receive()
            if not lines and not ended:
                time.sleep(0.05)
            for line in lines:
                note(name=context.name, what="line", line=line)
    note(name=context.name, what="ended")


def run(settings: dict[str, Any]) -> int:
    """Be a supervisor with these children."""
    global LOG
    LOG = settings["log"]
    logging.disable(logging.CRITICAL)
    children = [
        ChildSpec(
            child["name"],
            lambda context, do=child["do"]: target(do, context),
            restart=child.get("restart", True),
            events=child.get("events", False),
            last=child.get("last", False),
        )
        for child in settings["children"]
    ]
    supervisor = Supervisor(
        children,
        grace=settings.get("grace", 5.0),
        on_event=lambda kind, data: note(name="supervisor", what=kind, **{k: v for k, v in data.items() if k != "pid"}),
        backoff=Backoff(**settings.get("backoff", {})),
    )
    status = supervisor.run()
    if supervisor.failure:
        note(name="supervisor", what="failure", text=supervisor.failure)
    return status
