"""``fedq superlink``: the hub."""

from __future__ import annotations

from pathlib import Path

import click
from click.core import ParameterSource

from fedq.cli.options import Duration, debug_option, grace_option, log_format_option, redis_option


@click.command()
@click.option("--runs", "slots", type=click.IntRange(min=1), default=4, show_default=True, help="ServerApps at a time.")
@click.option(
    "--embedded",
    "embedded_dir",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Bring a server of its own, its data in DIR; its address is in DIR/url.",
)
@click.option(
    "--retention", type=Duration(), default="7d", show_default=True, help="How long ended runs are kept: 12h, 7d."
)
@click.option(
    "--keep-failed",
    type=Duration(),
    default="1d",
    show_default=True,
    help="How long a failed run keeps what fedq run --resume needs.",
)
@click.option("--cache-dir", type=click.Path(path_type=Path, file_okay=False), help="For apps that run here.")
@grace_option
@log_format_option
@redis_option
@debug_option
@click.pass_context
def superlink(
    ctx: click.Context,
    slots: int,
    embedded_dir: Path | None,
    retention: float,
    keep_failed: float,
    cache_dir: Path | None,
    grace: float,
    log_format: str,
    redis_url: str | None,
) -> int:
    """Serve ServerApps and keep house. Any number may run: they hold no state. Ends on SIGTERM."""
    # A variable that is set for the other commands is no contradiction.
    if embedded_dir is not None and ctx.get_parameter_source("redis_url") is ParameterSource.COMMANDLINE:
        raise click.UsageError("--embedded brings a server of its own; leave out --redis-url")
    from fedq.relay.service import run_superlink

    return run_superlink(
        redis_url,
        slots=slots,
        grace=grace,
        embedded_dir=embedded_dir,
        log_format=log_format,
        retention=retention,
        keep_failed=keep_failed,
        cache_dir=cache_dir,
    )
