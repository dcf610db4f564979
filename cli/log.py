"""``fedq log RUN``: what happened in a run, and what its apps said."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

import click

from fedq.cli.live import describe_event, describe_round
from fedq.cli.options import debug_option, json_option, redis_option
from fedq.cli.output import print_json_line
from fedq.cli.rounds import History

if TYPE_CHECKING:
    from fedq.relay import Event, Run


@click.command()
@click.argument("run_id", type=int, metavar="RUN")
@click.option("--follow", "-f", is_flag=True, help="Go on until the run is over.")
@click.option("--node", "nodes", multiple=True, metavar="NODE", help="Only the lines of this node's ClientApps.")
@redis_option
@json_option
@debug_option
def log(run_id: int, follow: bool, nodes: tuple[str, ...], redis_url: str | None, as_json: bool) -> None:
    """Show the events of RUN and the log lines of its apps, in the order of time. --json: one object a line."""
    from fedq.relay import SuperLink

    with SuperLink.connect(redis_url) as link:
        run = link.run(run_id)
        if as_json:
            for event in _events(run, follow, nodes):
                print_json_line({"time": event.time, "kind": event.kind, "data": event.data})
        else:
            for line in log_lines(run, follow=follow, nodes=nodes):
                click.echo(line)


def log_lines(run: Run, *, follow: bool = False, nodes: Collection[str] = ()) -> Iterator[str]:
    """The log of a run for people: events and log lines with their time, and a failed ServerApp's traceback."""
    history = History()
    for event in _events(run, follow, nodes):
        stamp = time.strftime("%H:%M:%S", time.localtime(event.time))
        yield from (f"{stamp} {line}" for line in (describe(event, history) or "").splitlines())
    if not nodes and (told := run.info().traceback):
        yield from told.rstrip().splitlines()


def _events(run: Run, follow: bool, nodes: Collection[str]) -> Iterator[Event]:
    events = run.events(logs=True, follow=follow)
    return (event for event in events if not nodes or event.data.get("node") in nodes)


def describe(event: Event, history: History) -> str | None:
    """The text of one event; None for those that say nothing to a person."""
    data: dict[str, Any] = dict(event.data)
    if event.kind == "log":
        place = str(data.get("node") or "serverapp")
        level = str(data.get("level") or "").lower()
        text = str(data.get("text") or data.get("message") or "")
        return "\n".join(f"{place}{f' {level}' if level else ''}: {line}" for line in text.splitlines() or [""])
    ended = history.feed(event.kind, data)
    if ended is not None:
        return describe_round(ended, history.total)
    return describe_event(event.kind, data)
