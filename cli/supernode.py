"""``fedq supernode``: the service at the data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fedq.cli.options import Duration, ModText, Size, debug_option, grace_option, log_format_option, redis_option
from fedq.cli.values import parse_labels, parse_pairs

if TYPE_CHECKING:
    from fedq.node.settings import NodeSettings

F = TypeVar("F", bound=Callable[..., Any])


def node_options(command: F) -> F:
    """What a SuperNode and an additional worker of a node have in common."""
    for option in reversed(
        [
            click.option(
                "--config",
                "-c",
                "config",
                multiple=True,
                metavar="KEY=VALUE",
                help="node_config of every ClientApp here, typed as in TOML. Repeat for more.",
            ),
            click.option(
                "--slots", type=click.IntRange(min=1), default=1, show_default=True, help="ClientApps at a time."
            ),
            click.option(
                "--isolation",
                type=click.Choice(["fork", "run", "inline"]),
                default="fork",
                show_default=True,
                help="A process for each message, one kept for each run, or the worker itself.",
            ),
            click.option(
                "--time-limit", type=Duration(), help="Most time for a message here, whatever its run allows."
            ),
            click.option(
                "--trust-key",
                "trust_keys",
                multiple=True,
                metavar="KEY",
                help="Trust apps signed with this Ed25519 key.",
            ),
            click.option(
                "--trust-digest",
                "trust_digests",
                multiple=True,
                metavar="DIGEST",
                help="Trust this app, signed or not.",
            ),
            click.option(
                "--mod",
                "mod",
                multiple=True,
                type=ModText(),
                metavar="MODULE:NAME",
                help="Impose this mod on everything that ClientApps reply, such as "
                "'fedq.apps.mod:SizeLimitMod(1000000)'. The first is the outermost.",
            ),
            click.option(
                "--ship-logs/--no-ship-logs",
                default=None,
                help="Let ClientApps' output into the run's log. [default: yes; with --mod: no]",
            ),
            click.option("--queue-url", metavar="URL", help="Server of this node's RQ queue. [default: the relay's]"),
            click.option("--cache-dir", type=click.Path(path_type=Path, file_okay=False), help="For apps and arrays."),
            click.option("--cache-size", type=Size(), metavar="SIZE", help="Most bytes of arrays there; 0: none."),
            click.option(
                "--threads",
                type=click.IntRange(min=0),
                default=1,
                show_default=True,
                help="Threads of the numerical libraries in each slot; 0 leaves them alone.",
            ),
            grace_option,
            log_format_option,
            redis_option,
            debug_option,
        ]
    ):
        command = option(command)
    return command


def settings_of(
    name: str, labels: tuple[str, ...], redis_url: str | None, options: dict[str, Any], virtual: int = 0
) -> NodeSettings:
    """The settings that the options of `node_options` stand for. Raises SettingsError or TrustError."""
    from fedq.node.settings import NodeSettings
    from fedq.node.trust import TrustPolicy

    more: dict[str, Any] = {} if options["cache_size"] is None else {"cache_bytes": options["cache_size"]}
    return NodeSettings(
        name=name,
        redis_url=redis_url,
        queue_url=options["queue_url"],
        config=parse_pairs(options["config"], "--config"),
        labels=parse_labels(labels, "--label"),
        slots=options["slots"],
        isolation=options["isolation"],
        grace=options["grace"],
        time_limit=options["time_limit"],
        trust=TrustPolicy.of(keys=options["trust_keys"], digests=options["trust_digests"]),
        ship_logs=not options["mod"] if options["ship_logs"] is None else options["ship_logs"],
        mods=options["mod"],
        cache_dir=options["cache_dir"],
        threads=options["threads"] or None,
        log_format=options["log_format"],
        virtual=virtual,
        **more,
    )


@click.command()
@click.option("--name", required=True, help="The node's name: letters, digits, '-'. The same after every restart.")
@click.option("--label", "-l", "labels", multiple=True, metavar="LABEL=VALUE", help="What runs select nodes by.")
@click.option(
    "--virtual",
    type=click.IntRange(min=1),
    metavar="N",
    help="For simulations: be the N nodes NAME-0, NAME-1, …, which share the slots, instead of one.",
)
@node_options
def supernode(
    name: str, labels: tuple[str, ...], virtual: int | None, redis_url: str | None, **options: Any
) -> int | None:
    """Serve ClientApps at the data, under a node's name. Only outbound connections; ends on SIGTERM."""
    settings = settings_of(name, labels, redis_url, options, virtual or 0)
    from fedq.node.service import run_supernode

    return run_supernode(settings)
