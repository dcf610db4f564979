"""``fedq log RUN``: what happened in a run, and what its apps said."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any

import click

from fedq.apps.history import History
from fedq.cli.live import describe_event, describe_round
from fedq.cli.options import debug_option, json_option, redis_option, track_option
from fedq.cli.output import print_json_line
from fedq.cli.problem import Problem
from fedq.cli.track import trackers_of, tracking

if TYPE_CHECKING:
    from fedq.relay import Event, Run, SuperLink


@click.command()
@click.argument("run_id", type=int, metavar="RUN")
@click.option("--follow", "-f", is_flag=True, help="Go on until the run is over.")
@click.option("--node", "nodes", multiple=True, metavar="NODE", help="Only the lines of this node's ClientApps.")
@track_option
@redis_option
@json_option
@debug_option
def log(
    run_id: int, follow: bool, nodes: tuple[str, ...], track: tuple[str, ...], redis_url: str | None, as_json: bool
) -> None:
    """Show the events of RUN and the log lines of its apps, in the order of time. --json: one object a line.

    --track writes the run's metrics to a tracker from the beginning; what is there already is not shown twice.
    """
    if track and nodes:
        raise click.UsageError("--track needs the whole log: leave out --node")
    trackers = trackers_of(track)

    from fedq.relay import SuperLink

    with SuperLink.connect(redis_url) as link:
        run = link.run(run_id)
        require_known(link, run, nodes)
        with tracking(run, trackers, lambda text: click.echo(f"warning: {text}", err=True)) as feed:
            if as_json:
                for event in _events(run, follow, nodes):
                    feed(event)
                    print_json_line({"time": event.time, "kind": event.kind, "data": event.data})
            else:
                for line in log_lines(run, follow=follow, nodes=nodes, also=feed):
                    click.echo(line)


def require_known(link: SuperLink, run: Run, nodes: Collection[str]) -> None:
    """A node that was removed since may have left lines; one that neither is nor was there is a slip of the pen."""
    unknown = set(nodes) - {node.name for node in link.nodes()}
    if unknown:
        unknown -= {str(event.data.get("node")) for event in run.events(logs=True, follow=False)}
    if unknown:
        raise Problem(
            f"no node is registered as {', '.join(sorted(unknown))}, and run {run.run_id} has no line of one; "
            "fedq nodes lists them"
        )


def log_lines(
    run: Run,
    *,
    follow: bool = False,
    nodes: Collection[str] = (),
    also: Callable[[Event], None] | None = None,
) -> Iterator[str]:
    """The log of a run for people: events and log lines with their time, and a failed ServerApp's traceback.

    ``also`` is called with each event.
    """
    history = History()
    for event in _events(run, follow, nodes):
        if also is not None:
            also(event)
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
    if event.kind == "round" and ended is not None:
        return describe_round(ended, history.total)
    return describe_event(event.kind, data)
