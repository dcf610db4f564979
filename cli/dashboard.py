"""``fedq dashboard``: rq-dashboard for this federation."""

from __future__ import annotations

import importlib.util
import os
import sys

import click

from fedq.cli.options import debug_option, redis_option
from fedq.cli.problem import Problem


@click.command()
@click.option("--bind", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), default=9181, show_default=True)
@redis_option
@debug_option
def dashboard(bind: str, port: int, redis_url: str | None) -> None:
    """Start rq-dashboard for this federation, on loopback: every message a job, every node a queue.

    It asks nobody for a password: let it listen beyond loopback only where everybody may see and delete jobs.
    """
    from fedq.relay.connection import Relay, resolve_url

    # rq-dashboard imports six without declaring it.
    absent = [name for name in ("rq_dashboard", "six") if importlib.util.find_spec(name) is None]
    if absent:
        raise Problem('rq-dashboard is not installed here; pip install "fedq[dashboard]" brings it')
    # rq-dashboard would start all the same, and show an error on every page.
    with Relay.connect(redis_url) as relay, relay.errors():
        relay.redis.ping()
    click.echo(f"http://{bind}:{port}", err=True)
    sys.stderr.flush()
    # Its address may hold a password, which a command line would show to everybody on this machine.
    os.environ["RQ_DASHBOARD_REDIS_URL"] = resolve_url(redis_url)
    words = [sys.executable, "-m", "rq_dashboard", "-j", "--bind", bind, "--port", str(port)]
    os.execv(sys.executable, words)
