"""The child's side: execute an assignment and send back what became of it.

Values sent to the parent: ``{"stage": …}`` when the app starts and finishes, then one of ``{"outcome": …}`` and
``{"raised": …, "traceback": …}``.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from typing import Any

from fedq.relay.jobs.frames import Channel
from fedq.relay.jobs.work import Assignment, Stage, Work, bind_stage

__all__ = ["execute", "leave", "serve"]


def execute(work: Work, assignment: Assignment, channel: Channel) -> bool:
    """Execute one assignment and report to ``channel``; whether it came to an outcome."""
    bind_stage(lambda stage: _stage(channel, stage))
    try:
        with work.capture(assignment):
            outcome = assignment.execute()
        reply: dict[str, Any] = {"outcome": outcome.to_json()}
    except BaseException as error:
        reply = {"raised": f"{type(error).__name__}: {error}".rstrip(": "), "traceback": traceback.format_exc()}
    finally:
        bind_stage(None)
    channel.send(reply)
    return "outcome" in reply


def _stage(channel: Channel, stage: Stage) -> None:
    channel.send({"stage": stage.value})


def serve(work: Work, channel: Channel) -> None:
    """Be a kept process: rebuild and execute one assignment after the other until the parent closes the channel."""
    while (request := channel.receive_one()) is not None:
        try:
            assignment = work.rebuild(request)
        except BaseException as error:
            reply = {"raised": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
            channel.send(reply)
            continue
        if not execute(work, assignment, channel):
            return  # what raised past the app may have left anything behind: the next message gets a fresh process


def leave(status: int) -> None:
    """End a forked process without running what its parent had registered for its own end."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(status)
