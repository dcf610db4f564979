"""The ClientApp of these tests. What it does is the message's type; files of the test decide when it goes on."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from fedq.apps import ArrayRecord, ClientApp, ConfigRecord, Context, Message, MetricRecord, RecordDict

app = ClientApp()


def note(message: Message, line: str) -> None:
    """Append to a file of the test that something happened."""
    with open(str(message.content["config"]["notes"]), "a") as file:
        file.write(line + "\n")


def answer(message: Message, context: Context, **metrics: int | float) -> Message:
    """A reply that tells the process, and how many messages this Context has seen."""
    seen = context.state["seen"] if "seen" in context.state else MetricRecord({"count": 0})
    count = int(seen["count"]) + 1  # type: ignore[index, arg-type]
    context.state["seen"] = MetricRecord({"count": count})
    content = RecordDict({"metrics": MetricRecord({"count": count, "pid": os.getpid(), **metrics})})
    return Message(content, reply_to=message)


@app.train()
def add(message: Message, context: Context) -> Message:
    """Adds one to every array, and remembers their sum in the Context."""
    arrays = [a + 1 for a in message.content.array_records["arrays"].to_numpy_ndarrays()]
    context.state["arrays"] = ArrayRecord(arrays)
    reply = answer(message, context)
    reply.content["arrays"] = ArrayRecord(arrays)
    return reply


@app.train("echo")
def echo(message: Message, context: Context) -> Message:
    """Sends back what it got."""
    reply = answer(message, context)
    reply.content["arrays"] = message.content["arrays"]
    return reply


@app.query()
def where(message: Message, context: Context) -> Message:
    """Tells about the surroundings."""
    facts: dict[str, Any] = {f"node-{k}": v for k, v in context.node_config.items()}
    facts |= {f"run-{k}": v for k, v in context.run_config.items()}
    facts |= {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", ""), "type": message.metadata.message_type}
    facts |= {"node": context.node_id, "run": context.run_id, "group": message.metadata.group_id}
    reply = answer(message, context)
    reply.content["config"] = ConfigRecord(facts)
    return reply


@app.train("fail")
def fail(message: Message, context: Context) -> Message:
    context.state["spoilt"] = MetricRecord({"yes": 1})
    raise ValueError("no data for this patient")


@app.train("leave")
def leave(message: Message, context: Context) -> Message:
    sys.exit(3)


@app.train("nothing")
def nothing(message: Message, context: Context) -> Message:
    return None  # type: ignore[return-value]


@app.train("hang")
def hang(message: Message, context: Context) -> Message:
    """Never returns, and ignores what can be ignored."""
    note(message, f"hangs {os.getpid()}")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(60)


@app.train("die")
def die(message: Message, context: Context) -> Message:
    """Kills its own process, as often as the message says."""
    note(message, f"dies {os.getpid()}")
    notes = Path(str(message.content["config"]["notes"])).read_text().count("dies")
    if notes <= int(message.content["config"]["times"]):  # type: ignore[index, call-overload, arg-type]
        os.kill(os.getpid(), signal.SIGKILL)
    return answer(message, context)


@app.train("mark")
def mark(message: Message, context: Context) -> Message:
    """Notes which node it ran on."""
    note(message, f"runs {context.node_id}")
    return answer(message, context)


@app.train("wait")
def wait(message: Message, context: Context) -> Message:
    """Goes on when somebody opens the FIFO of its name for writing."""
    note(message, f"waits {os.getpid()}")
    with open(str(message.content["config"]["gate"])) as gate:
        gate.read()
    note(message, f"goes on {os.getpid()}")
    reply = answer(message, context)
    if size := message.content["config"].get("size"):
        reply.content["arrays"] = ArrayRecord([np.zeros(int(size), dtype=np.uint8)])
    return reply


@app.train("chatter")
def chatter(message: Message, context: Context) -> Message:
    for number in range(1900):
        print(number)
    return answer(message, context)


@app.train("talk")
def talk(message: Message, context: Context) -> Message:
    print("training begins")
    logging.getLogger("digits").info("loss %.2f", 0.25)
    print("careful", file=sys.stderr)
    print("no line break", end="")
    return answer(message, context)
