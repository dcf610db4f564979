"""``fedq runs``: the runs that the server keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from fedq.cli.connect import relay
from fedq.cli.options import Duration, debug_option, json_option, redis_option
from fedq.cli.output import ago, print_json, print_table, span
from fedq.cli.problem import Problem

if TYPE_CHECKING:
    from fedq.relay.runs import RunInfo


def describe(info: RunInfo, now: float) -> dict[str, Any]:
    """A run for ``--json``. Times are seconds since the epoch by the server's clock, null where not yet."""
    return {
        "run_id": info.run_id,
        "name": info.name,
        "user": info.user,
        "status": info.status,
        "detail": info.detail,
        "reason": info.reason,
        "created": info.created or None,
        "started": info.started or None,
        "ended": info.ended or None,
        "seconds": _seconds(info, now),
        "attempt": info.attempt,
        "checkpoint": info.checkpoint,
        "resumable": info.resumable,
        "nodes": dict(info.selector),
        "durability": info.durability,
    }


def _seconds(info: RunInfo, now: float) -> float | None:
    if not info.started:
        return None
    return max(0.0, (info.ended or now) - info.started)


@click.group(invoke_without_command=True)
@click.option("--limit", "-n", default=50, show_default=True, type=click.IntRange(min=1), help="The newest N.")
@redis_option
@json_option
@debug_option
@click.pass_context
def runs(ctx: click.Context, limit: int, redis_url: str | None, as_json: bool) -> None:
    """List the runs, newest first; remove old ones."""
    ctx.obj = redis_url
    if ctx.invoked_subcommand is not None:
        return
    from fedq.relay.runs import list_runs

    with relay(redis_url) as handle:
        found, now = list_runs(handle, limit), handle.now()
    if as_json:
        print_json([describe(info, now) for info in found])
        return
    print_table(
        ["RUN", "NAME", "STATUS", "BY", "SUBMITTED", "TOOK", "REMARK"],
        [
            [
                info.run_id,
                info.name,
                info.status,
                info.user,
                ago(info.created, now=now),
                span(_seconds(info, now)),
                info.reason or (info.detail if not info.over else ""),
            ]
            for info in found
        ],
        empty="no runs yet; submit one with fedq run APP",
    )


@runs.command()
@click.argument("run_ids", nargs=-1, required=True, type=int, metavar="RUN...")
@redis_option
@debug_option
@click.pass_context
def rm(ctx: click.Context, run_ids: tuple[int, ...], redis_url: str | None) -> None:
    """Forget ended runs: their status, events, result and final arrays."""
    from fedq.relay.cleanup import remove_run
    from fedq.relay.runs import run_info

    with relay(redis_url or ctx.obj) as handle:
        alive = [run for run in run_ids if not run_info(handle, run).over]
        if alive:
            raise Problem(f"run {alive[0]} is not over; stop it first with fedq stop {alive[0]}")
        for run in run_ids:
            remove_run(handle, run)
    click.echo(f"removed {'run' if len(run_ids) == 1 else 'runs'} {', '.join(map(str, run_ids))}")


@runs.command()
@click.option(
    "--older-than", type=Duration(), default="7d", show_default=True, help="Ended longer ago than this: 90s, 2h, 7d."
)
@redis_option
@json_option
@debug_option
@click.pass_context
def prune(ctx: click.Context, older_than: float, redis_url: str | None, as_json: bool) -> None:
    """Forget all runs that ended some time ago."""
    from fedq.relay.superlink import prune as prune_runs

    with relay(redis_url or ctx.obj) as handle:
        old = prune_runs(handle, older_than)
    if as_json:
        print_json({"removed": old})
    else:
        click.echo(f"removed {len(old)} runs" if old else "nothing to remove")
