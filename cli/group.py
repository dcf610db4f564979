"""The ``fedq`` command: the list of its commands, each loaded when it is called."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import click

from fedq.cli.options import debug_option, show_version
from fedq.cli.problem import NobodyReads


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a command is, and the line that the help shows without loading it."""

    module: str
    help: str


COMMANDS = {
    "demo": Entry("demo", "Train an app on a private federation of six nodes on this machine, and watch."),
    "simulate": Entry("simulate", "Run an app with many virtual nodes on this machine, or on several."),
    "new": Entry("new", "Write a runnable app project."),
    "run": Entry("run", "Submit an app to the federation."),
    "runs": Entry("runs", "List runs; remove old ones."),
    "log": Entry("log", "Show what happened in a run."),
    "stop": Entry("stop", "Stop a run."),
    "pull": Entry("pull", "Write a run's final arrays and metrics to files."),
    "nodes": Entry("nodes", "List nodes; register, remove, or print the access rule of one."),
    "superlink": Entry("superlink", "Serve ServerApps and keep house: the hub of a federation."),
    "supernode": Entry("supernode", "Serve ClientApps at the data, under a node's name."),
    "worker": Entry("worker", "Add slots to a node, on this or another machine."),
    "doctor": Entry("doctor", "Examine the server and the federation; say what to mend and how."),
    "dashboard": Entry("dashboard", "Start rq-dashboard for this federation, on loopback."),
}


def name_variables(command: click.Command, prefix: str) -> None:
    """Let each option be read from the variable of its name on the command line, which click would not do where the
    function's argument is called something else: --trust-key from FEDQ_SUPERNODE_TRUST_KEY."""
    for option in command.params:
        if isinstance(option, click.Option) and option.envvar is None:
            word = next((word for word in option.opts if word.startswith("--")), "")
            option.envvar = f"{prefix}_{word[2:].replace('-', '_').upper()}" if word else None
    for name, below in command.commands.items() if isinstance(command, click.Group) else ():
        name_variables(below, f"{prefix}_{name.upper()}")


class LazyGroup(click.Group):
    """A group whose commands are imported from ``fedq.cli`` by name on first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        command = getattr(importlib.import_module(f"fedq.cli.{entry.module}"), entry.module)
        assert isinstance(command, click.Command)
        name_variables(command, f"FEDQ_{cmd_name.upper()}")
        return command

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        try:
            return super().make_context(*args, **kwargs)
        except BrokenPipeError as error:
            raise NobodyReads from error

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise NobodyReads from error
        except click.UsageError as error:
            # click does not say of which command an option lacks its value.
            name = ctx.invoked_subcommand
            if error.ctx is None and name is not None and (command := self.get_command(ctx, name)) is not None:
                error.ctx = click.Context(command, parent=ctx, info_name=name)
            raise

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"auto_envvar_prefix": "FEDQ", "help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Options can come from variables as well: FEDQ_REDIS_URL is the server's address, FEDQ_RUN_NAME is "
    "`fedq run --name`, and so on.",
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=show_version,
    help="Show the versions of fedq and of the server, and exit.",
)  # fmt: skip
@debug_option
@click.pass_context
def fedq(ctx: click.Context) -> None:
    """Federated learning on Redis and RQ."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
