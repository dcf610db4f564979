"""``--track``: from the words on the command line to trackers that are fed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import click

from fedq.cli.problem import Problem

if TYPE_CHECKING:
    from fedq.apps.tracking import Tracker
    from fedq.relay import Event, Run


def trackers_of(words: Sequence[str]) -> list[Tracker]:
    """The trackers that the words name. Asked for before a run is submitted, so that a mistake costs nothing."""
    if not words:
        return []
    from fedq.apps.tracking import tracker_named

    try:
        return [tracker_named(word) for word in words]
    except ValueError as error:
        raise click.UsageError(f"--track: {error}") from error


@contextmanager
def tracking(run: Run, trackers: Sequence[Tracker], tell: Callable[[str], None]) -> Iterator[Callable[[Event], None]]:
    """Give it the run's events, and they go to the trackers. ``tell`` hears of a tracker that fails on the way."""
    if not trackers:
        yield lambda event: None
        return
    from fedq.apps.tracking import Tracking

    def failed(text: str) -> None:
        tell(f"{text}; fedq log -f {run.run_id} --track … writes what is missing")

    with ExitStack() as stack:
        try:
            following = stack.enter_context(Tracking(run.tracked(), trackers, on_failure=failed))
        except Exception as error:
            reason = " ".join(str(error).split())
            raise Problem(
                f"run {run.run_id} goes on, but a tracker cannot begin: {type(error).__name__}: {reason}; "
                f"when that is put right, fedq log -f {run.run_id} --track … follows it"
            ) from error
        yield following.event
