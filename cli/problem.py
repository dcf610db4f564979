"""What the user sees when something goes wrong: one line on stderr that says what to do.

Exit codes: 1 for the user's or the environment's fault, 2 for wrong usage, 130 after Ctrl-C. A traceback is shown with
``--debug`` only. Nothing heavy is imported here: an error of another layer is recognised by its class once that layer
is loaded.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

import click

INTERRUPTED = 130


class Problem(click.ClickException):
    """Something that the user can act on. ``message`` says what happened and what to do. Exit code 1."""


class NobodyReads(Exception):
    """stdout is a pipe whose reader has gone. Not an OSError: click would end the process with 1 for that one."""


def debugging() -> bool:
    """True after ``--debug`` or with FEDQ_DEBUG set to anything but 0."""
    return _Debug.on or os.environ.get("FEDQ_DEBUG", "0").lower() not in ("", "0", "false", "no")


class _Debug:
    on = False


def switch_debugging(on: bool) -> None:
    """Show tracebacks from now on."""
    _Debug.on = _Debug.on or on


def one_line(text: str) -> str:
    """``text`` on one line, without the line breaks that a library put into its message."""
    return " ".join(text.split())


def run_command(command: click.Command, args: Sequence[str] | None = None) -> int:
    """Run ``command``, report what it raises, and return the exit code."""
    try:
        result = command.main(args=list(args) if args is not None else None, prog_name="fedq", standalone_mode=False)
        sys.stdout.flush()
    except click.UsageError as error:
        return _complain(_usage_line(error), error.exit_code, error)
    except click.ClickException as error:
        return _complain(error.format_message(), error.exit_code, error)
    except (KeyboardInterrupt, click.Abort) as error:
        return _complain("interrupted", INTERRUPTED, error)
    except (BrokenPipeError, NobodyReads):
        return _nobody_reads()
    except Exception as error:
        return _complain(_line_of(error), 1, error)
    return result if isinstance(result, int) else 0


def _nobody_reads() -> int:
    """The reader of a pipe (`fedq runs | head`) has what it wanted; the interpreter must not complain about it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno() if sys.__stdout__ else 1)
    return 0


def _complain(line: str, code: int, error: BaseException) -> int:
    if debugging():
        traceback.print_exception(error)
        told = getattr(error, "traceback", None)
        if told:
            click.echo(str(told).rstrip(), err=True)
    click.echo(f"fedq: {one_line(line)}", err=True)
    return code


def _usage_line(error: click.UsageError) -> str:
    path = error.ctx.command_path if error.ctx is not None else "fedq"
    return f"{error.format_message().rstrip('.')}; see `{path} --help`"


def _line_of(error: Exception) -> str:
    errors = sys.modules.get("fedq.apps.errors")
    if errors is not None and isinstance(error, errors.FedqError):
        return str(error)
    if "redis.exceptions" in sys.modules and isinstance(error, sys.modules["redis.exceptions"].RedisError):
        from fedq.relay.connection import resolve_url, translate

        return str(translate(error, resolve_url()))
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, ModuleNotFoundError) and error.name is not None and not error.name.startswith("fedq"):
        return f"the package {error.name} is not installed here; install it with pip and try again"
    kind = type(error).__name__
    return f"unexpected {kind}: {error}; run the command again with --debug to see where, and please report it"
