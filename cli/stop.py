"""``fedq stop RUN``."""

from __future__ import annotations

import click

from fedq.cli.connect import relay
from fedq.cli.options import debug_option, json_option, redis_option
from fedq.cli.output import print_json


@click.command()
@click.argument("run_id", type=int, metavar="RUN")
@redis_option
@json_option
@debug_option
def stop(run_id: int, redis_url: str | None, as_json: bool) -> None:
    """Stop RUN: its ServerApp and what its ClientApps do anywhere. A run that is over stays as it is."""
    from fedq.relay.runs import run_info, stop_run

    with relay(redis_url) as handle:
        stopped = stop_run(handle, run_id)
        status = run_info(handle, run_id).status
    if as_json:
        print_json({"run_id": run_id, "stopped": stopped, "status": status})
    else:
        click.echo(f"run {run_id} is stopped" if stopped else f"run {run_id} was {status} already")
