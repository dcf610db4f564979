"""``fedq nodes``: the federation's nodes."""

from __future__ import annotations

import contextlib
import gc
import secrets
from collections.abc import Iterator
from typing import Any

import click

from fedq.cli.connect import relay
from fedq.cli.options import debug_option, json_option, redis_option
from fedq.cli.output import print_json, print_table
from fedq.cli.problem import Problem
from fedq.cli.values import parse_labels


@click.group(invoke_without_command=True)
@click.option("--node-label", "-l", "labels", multiple=True, metavar="LABEL=VALUE", help="Only nodes with this label.")
@redis_option
@json_option
@debug_option
@click.pass_context
def nodes(ctx: click.Context, labels: tuple[str, ...], redis_url: str | None, as_json: bool) -> None:
    """List the registered nodes, or register, remove, or print the access rule of one."""
    ctx.obj = redis_url
    if ctx.invoked_subcommand is not None:
        return
    from fedq.relay.nodes import list_nodes

    selector = parse_labels(labels, "--node-label")
    with relay(redis_url) as handle, _uncollected():
        found = list_nodes(handle, selector, details=as_json)
    if as_json:
        print_json(
            [
                {
                    "name": node.name,
                    "online": node.online,
                    "labels": dict(node.labels),
                    "slots": node.info.slots,
                    "isolation": node.info.isolation,
                    "mods": list(node.info.mods),
                    "host": node.info.host,
                    "details": dict(node.info.details),
                }
                for node in found
            ]
        )
        return
    imposing = any(node.info.mods for node in found)
    print_table(
        ["NODE", "STATE", "SLOTS", "ISOLATION", "LABELS", "HOST", *(["MODS"] if imposing else [])],
        [
            [
                node.name,
                "online" if node.online else "offline",
                node.info.slots,
                node.info.isolation,
                " ".join(f"{key}={value}" for key, value in sorted(node.labels.items())),
                node.info.host,
                *([" ".join(_brief(mod) for mod in node.info.mods)] if imposing else []),
            ]
            for node in found
        ],
        empty="no node is registered; start one with fedq supernode --name NAME"
        if not selector
        else "no node has these labels; fedq nodes lists them all",
    )


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Without the garbage collector, which looks through ten thousand nodes a dozen times while they are made."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _brief(mod: str) -> str:
    """The name of a mod without module and arguments, for the table; ``--json`` has all of it."""
    return mod.partition(":")[2].partition("(")[0].rpartition(".")[2]


@nodes.command()
@click.argument("name")
@redis_option
@debug_option
@click.pass_context
def add(ctx: click.Context, name: str, redis_url: str | None) -> None:
    """Register NAME, so that messages can wait for it before its SuperNode has ever been there.

    Needed where the node's own rights do not allow it to register itself (`fedq nodes acl`).
    """
    from fedq.relay import nodes as steps

    with relay(redis_url or ctx.obj) as handle:
        steps.add(handle, name)
    click.echo(f"{name} is registered; start it with fedq supernode --name {name}")


@nodes.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--force", is_flag=True, help="Also remove nodes that are online; they will register again.")
@redis_option
@debug_option
@click.pass_context
def rm(ctx: click.Context, names: tuple[str, ...], force: bool, redis_url: str | None) -> None:
    """Take nodes off the register. What still waits for their answer is answered when its time to live is over."""
    from fedq.relay import nodes as steps

    with relay(redis_url or ctx.obj) as handle:
        known = set(steps.node_names(handle))
        unknown = [name for name in names if name not in known]
        if unknown:
            raise Problem(f"no node is registered as {', '.join(unknown)}; fedq nodes lists them")
        live = [name for name, online in steps.online(handle, list(names)).items() if online]
        if live and not force:
            raise Problem(f"{', '.join(live)} is online; stop its SuperNode first, or add --force")
        for name in names:
            steps.forget(handle, name)
    click.echo(f"removed {', '.join(names)}")


@nodes.command()
@click.argument("name")
@click.option("--password", metavar="WORD", help="The node's password. [default: a new random one]")
@click.option("--apply", is_flag=True, help="Set the rule on the server at once, instead of only printing it.")
@redis_option
@json_option
@debug_option
@click.pass_context
def acl(ctx: click.Context, name: str, password: str | None, apply: bool, redis_url: str | None, as_json: bool) -> None:
    """Print the access rule that confines NAME to its own keys, as a command for redis-cli or valkey-cli.

    The node then connects as that user: FEDQ_REDIS_URL=redis://NAME:PASSWORD@host:6379. Register it with `fedq nodes
    add`, because the rule does not let it write the register.
    """
    from fedq.apps.errors import FedqError
    from fedq.cli.acl import node_rule, setuser

    word = password or secrets.token_urlsafe(24)
    url = redis_url or ctx.obj
    server: Any = None
    try:
        with relay(url) as handle:
            server = handle.check()
            command = setuser(name, word, node_rule(name, setinfo=_knows_setinfo(server.version)))
            if apply:
                server_does: Any = handle.redis.execute_command
                server_does(*command)
    except FedqError:
        if apply or server is not None:
            raise
        # Printing needs no server.
        command = setuser(name, word, node_rule(name, setinfo=False))
    if as_json:
        print_json({"user": name, "password": word, "rule": command[3:], "applied": apply})
    elif apply:
        click.echo(f"the server now has a user {name} with the password {word}")
    else:
        click.echo(" ".join(command))


def _knows_setinfo(version: str) -> bool:
    numbers = [int(part) for part in version.split(".")[:2] if part.isdigit()]
    return numbers >= [7, 2]
