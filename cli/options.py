"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fedq.cli.problem import switch_debugging

F = TypeVar("F", bound=Callable[..., Any])

if TYPE_CHECKING:
    Seconds = click.ParamType[float]
    Bytes = click.ParamType[int]
    Text = click.ParamType[str]
else:
    # Only newer versions of click have a type parameter there.
    Seconds = Bytes = Text = click.ParamType


def redis_option(command: F) -> F:
    """``--redis-url``; passes ``redis_url: str | None`` (None: the local server)."""
    return click.option(
        "--redis-url",
        "-r",
        metavar="URL",
        envvar=["FEDQ_REDIS_URL", "REDIS_URL"],
        help="Address of the Redis or Valkey server: redis://, rediss:// or unix://. "
        "[default: FEDQ_REDIS_URL, REDIS_URL, or the one on this machine]",
    )(command)


def json_option(command: F) -> F:
    """``--json``; passes ``as_json: bool``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout and nothing else.")(command)


def debug_option(command: F) -> F:
    """``--debug``: tracebacks, wherever on the line it stands."""

    def switch(_ctx: click.Context, _param: click.Parameter, value: bool) -> None:
        switch_debugging(value)

    return click.option(
        "--debug", is_flag=True, is_eager=True, expose_value=False, callback=switch, help="Show tracebacks."
    )(command)


def show_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    """Print fedq's version and, when one answers, the server's. Never fails for want of a server."""
    if not value or ctx.resilient_parsing:
        return
    from fedq.cli.version import version_lines

    for line in version_lines():
        click.echo(line)
    ctx.exit()


def duration(text: str) -> float:
    """Seconds of ``90``, ``90s``, ``15m``, ``2h`` or ``7d``. Raises ValueError for anything else."""
    units = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
    text = text.strip().lower()
    factor = units.get(text[-1:])
    number = float(text[:-1] if factor else text) * (factor or 1.0)
    if not 0 <= number < float("inf"):
        raise ValueError(text)
    return number


class Duration(Seconds):
    """An option type: a span of time, in seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, (int, float)):
            return float(value)
        try:
            return duration(str(value))
        except ValueError:
            self.fail(f"{value!r} is no span of time; write 90, 90s, 15m, 2h or 7d", param, ctx)


class Size(Bytes):
    """An option type: a number of bytes, written ``500MB``, ``2GB`` (powers of 1000) or ``64MiB``."""

    name = "size"
    _UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}  # noqa: RUF012

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        word = str(value).strip().upper()
        digits = word.rstrip("BKMGI").strip()
        try:
            return int(float(digits) * self._UNITS[word[len(digits) :].strip()])
        except (ValueError, KeyError, OverflowError):
            self.fail(f"{value!r} is no size; write 500MB, 2GB or a number of bytes", param, ctx)


class ModText(Text):
    """An option type: the name of a mod. In a variable, spaces outside of brackets stand between names."""

    name = "mod"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return str(value)

    def split_envvar_value(self, rv: str) -> list[str]:
        """The names in the value of a variable."""
        names, depth = [""], 0
        for letter in rv:
            depth += (letter in "([{") - (letter in ")]}")
            if letter.isspace() and depth <= 0:
                names.append("")
            else:
                names[-1] += letter
        return [name for name in names if name]


def track_option(command: F) -> F:
    """``--track``, any number of times; passes ``track: tuple[str, ...]``."""
    return click.option(
        "--track",
        multiple=True,
        metavar="TRACKER",
        help="Write the metrics to tensorboard:DIR, mlflow:URI or wandb:PROJECT. Repeat for more.",
    )(command)


def log_format_option(command: F) -> F:
    """``--log-format``; passes ``log_format: str``."""
    return click.option(
        "--log-format",
        type=click.Choice(["text", "json"]),
        default="text",
        show_default=True,
        help="How the service's own log is written, on stderr.",
    )(command)


def grace_option(command: F) -> F:
    """``--grace``; passes ``grace: float`` in seconds."""
    return click.option(
        "--grace",
        type=Duration(),
        default="30s",
        show_default=True,
        help="Time that a running app may take to finish after SIGTERM.",
    )(command)
