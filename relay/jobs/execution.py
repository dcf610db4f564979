"""The child's side: execute an assignment and send back what became of it.

Values sent to the parent: ``{"stage": …}`` when the app starts and finishes, ``{"ask": …}`` for what it may do on its
own connection, then one of ``{"outcome": …}`` and ``{"raised": …, "traceback": …}``. Values that come from it: what to
execute, ``{"ahead": …}`` and ``{"answer": …}``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from fedq.relay.jobs.frames import Channel
from fedq.relay.jobs.heap import keep_freed
from fedq.relay.jobs.work import Assignment, Stage, Work, bind_parent, bind_stage

__all__ = ["be", "execute", "leave", "serve"]

log = logging.getLogger("fedq.worker")


class _Parent:
    """The worker at the other end of the channel."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._ahead = True

    def ahead(self) -> Any:
        if not self._ahead:
            return None
        self._ahead = False
        return self._hear("ahead")

    def ask(self, request: Any) -> Any:
        self.ahead()
        return self._hear("answer") if self._channel.send({"ask": request}) else None

    def _hear(self, what: str) -> Any:
        value = self._channel.receive_one()
        return value.get(what) if isinstance(value, dict) else None


def execute(work: Work, assignment: Assignment, channel: Channel, *, ahead: bool = False) -> bool:
    """Execute one assignment and report to ``channel``; whether it came to an outcome.

    ``ahead``: the parent sends what it has done ahead, and answers what it is asked.
    """
    bind_parent(_Parent(channel) if ahead else None)
    # Without a time limit nobody needs to know, and the worker sleeps on.
    bind_stage((lambda stage: _stage(channel, stage)) if assignment.time_limit is not None else None)
    try:
        with work.capture(assignment):
            outcome = assignment.execute()
        reply: dict[str, Any] = {"outcome": outcome.to_json()}
    except BaseException as error:
        reply = _raised(error)
    finally:
        bind_stage(None)
    channel.send(reply)
    return "outcome" in reply


def _stage(channel: Channel, stage: Stage) -> None:
    channel.send({"stage": stage.value})


def serve(work: Work, channel: Channel) -> None:
    """Be a kept process: rebuild and execute one assignment after the other until the parent closes the channel."""
    keep_freed()
    while (request := channel.receive_one()) is not None:
        try:
            assignment = work.rebuild(request)
        except BaseException as error:
            channel.send(_raised(error))
            continue
        if not execute(work, assignment, channel):
            return  # what raised past the app may have left anything behind: the next message gets a fresh process


def be(body: Callable[[], object], channel: Channel | None = None) -> NoReturn:
    """Be a forked process: run ``body`` and end.

    What it raises is logged, and sent to the parent if there is a channel. If it returns False the status is 1.
    """
    status = 1
    try:
        status = 1 if body() is False else 0
    except BaseException as error:
        log.exception("process %d has failed", os.getpid())
        if channel is not None:
            channel.send(_raised(error))
    finally:
        leave(status)


def _raised(error: BaseException) -> dict[str, Any]:
    return {"raised": f"{type(error).__name__}: {error}".rstrip(": "), "traceback": traceback.format_exc()}


def leave(status: int) -> NoReturn:
    """End a forked process without running what its parent had registered for its own end."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(status)
