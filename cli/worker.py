"""``fedq worker``: more slots for a node."""

from __future__ import annotations

from typing import Any

import click

from fedq.cli.supernode import node_options, settings_of


@click.command()
@click.option("--node", "name", required=True, help="The node whose messages it helps with.")
@node_options
def worker(name: str, redis_url: str | None, **options: Any) -> int | None:
    """Add slots to a node, on this or another machine.

    It takes the node's messages from the same queue, and takes over from the SuperNode should that be gone.
    """
    settings = settings_of(name, (), redis_url, options)
    from fedq.node.service import run_worker

    return run_worker(settings)
