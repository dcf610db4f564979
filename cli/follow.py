"""Submitting an app and following its run to the end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from fedq.cli.problem import Problem

if TYPE_CHECKING:
    from fedq.cli.live import View
    from fedq.relay import Event, Run


def follow(run: Run, view: View, *, timeout: float | None = None, also: Callable[[Event], None] | None = None) -> None:
    """Show the run's events until it is over, and give them to ``also``.

    Raises Problem if that takes more than ``timeout`` seconds.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    for event in run.events(timeout=timeout):
        view.event(event.kind, event.data)
        if also is not None:
            also(event)
        if deadline is not None and time.monotonic() > deadline:
            break
    if not run.info().over:
        raise Problem(
            f"run {run.run_id} is not over after {timeout:g} s and goes on; look with fedq log -f {run.run_id}, "
            f"or stop it with fedq stop {run.run_id}"
        )


def require_finished(run: Run) -> None:
    """Raises Problem with the reason unless the run finished."""
    info = run.info()
    if info.status == "finished":
        return
    reason = f": {info.reason.rstrip('.')}" if info.reason else ""
    more = f"; fedq log {run.run_id} tells more" if info.status == "failed" else ""
    if info.resumable:
        more += f", fedq run --resume {run.run_id} goes on from checkpoint {info.checkpoint}"
    raise Problem(f"run {run.run_id} {'was stopped' if info.status == 'stopped' else info.status}{reason}{more}")
