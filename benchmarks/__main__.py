"""``python -m benchmarks``: measures, prints a table, writes JSON."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from benchmarks.options import ISOLATIONS, Options
from benchmarks.rows import Row, shown, size

PARTS = {
    "counts": "counts",
    "round": "rounds",
    "messages": "messages",
    "memory": "memory",
    "endurance": "endurance",
    "idle": "idle",
    "nodes": "many_nodes",
    "async": "asynchronous",
    "flower": "flower",
    "simulation": "simulation",
}
"""The parts and their modules, in the order in which all of them are run."""

SHOWN_MORE = {
    "cpu_ms_per_message": "CPU ms",
    "floor_cpu_ms_per_message": "floor's CPU",
    "round_trips_per_message": "round trips",
    "wire_bytes_per_message": "bytes on the wire",
}
"""Further figures that get a column: each for one message."""


class Numbers(click.ParamType[tuple[int, ...]]):
    """Numbers with commas between them."""

    name = "numbers"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """The numbers, each above 0."""
        if isinstance(value, tuple):
            return value
        try:
            found = tuple(int(word.replace("_", "")) for word in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers such as 2,4", param, ctx)
        if min(found) < 1:
            self.fail("each number must be above 0", param, ctx)
        return found


class Words(click.ParamType[tuple[str, ...]]):
    """Some of a few words, with commas between them."""

    name = "words"

    def __init__(self, allowed: tuple[str, ...]) -> None:
        self.allowed = allowed

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """The words."""
        if isinstance(value, tuple):
            return value
        found = tuple(str(value).split(","))
        if unknown := set(found) - set(self.allowed):
            self.fail(f"{sorted(unknown)[0]!r} is none of {', '.join(self.allowed)}", param, ctx)
        return found


@click.command(help=f"Measure the given parts ({', '.join(PARTS)}); all of them by default.")
@click.argument("parts", nargs=-1, type=click.Choice(list(PARTS)), metavar="[PART]...")
@click.option("--nodes", type=Numbers(), default=(), metavar="N,N", help="Only these numbers of nodes.")
@click.option("--bytes", "sizes", type=Numbers(), default=(), metavar="N,N", help="Only these payloads.")
@click.option("--isolation", type=Words(ISOLATIONS), default=(), metavar="MODE,MODE", help="Only these isolations.")
@click.option("--repetitions", type=click.IntRange(1), help="Counted repetitions. [default: 5; 2 with --small]")
@click.option("--rounds", type=click.IntRange(40), default=2000, show_default=True, help="Rounds of endurance.")
@click.option("--messages", type=click.IntRange(2), default=2000, show_default=True, help="Messages of messages.")
@click.option("--seconds", type=click.FloatRange(1.0), default=30.0, show_default=True, help="Seconds of idle.")
@click.option("--registered", type=click.IntRange(10), default=10_000, show_default=True, help="Nodes of nodes.")
@click.option(
    "--flower", type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="PYTHON",
    help="A python with Flower 1.42. [default: an environment is made, beside this one]",
)  # fmt: skip
@click.option("--small", is_flag=True, help="A version of each part that takes seconds; its figures say little.")
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Write the figures there.")
@click.option("--check", is_flag=True, help="Exit with 3 if a figure misses its goal.")
def main(
    parts: tuple[str, ...],
    nodes: tuple[int, ...],
    sizes: tuple[int, ...],
    isolation: tuple[str, ...],
    repetitions: int | None,
    rounds: int,
    messages: int,
    seconds: float,
    registered: int,
    flower: Path | None,
    small: bool,
    json_file: Path | None,
    check: bool,
) -> None:
    console = Console(stderr=True, highlight=False)
    options = Options(
        nodes=nodes,
        bytes=sizes,
        isolation=isolation,
        repetitions=repetitions or (2 if small else 5),
        small=small,
        rounds=rounds,
        messages=messages,
        seconds=seconds,
        registered=registered,
        flower=flower,
        say=lambda text: console.print(text, style="dim"),
    )
    rows: list[Row] = []
    failed = []
    try:
        for part in parts or tuple(PARTS):
            try:
                for row in measure(part)(options):
                    rows.append(row)
                    console.print(line(row), style="dim")
                    # What was measured is kept, whatever becomes of the rest.
                    write(rows, json_file)
            except Exception:
                failed.append(part)
                console.print(f"{part} could not be measured:\n{traceback.format_exc()}", style="red", markup=False)
    finally:
        write(rows, json_file)
        if rows:
            show(rows, Console(width=None if sys.stdout.isatty() else 180, highlight=False))
    if failed:
        sys.exit(1)
    if check and any(row.goal is not None and row.goal.met(row) is False for row in rows):
        sys.exit(3)


def measure(part: str) -> Callable[[Options], Iterator[Row]]:
    """The function that measures a part. A part's module is loaded when it is needed."""
    function: Callable[[Options], Iterator[Row]] = import_module(f"benchmarks.{PARTS[part]}").measure
    return function


def write(rows: list[Row], path: Path | None) -> None:
    """Write all rows so far."""
    if path is not None:
        path.write_text(json.dumps([row.as_json() for row in rows], indent=1) + "\n")


def line(row: Row) -> str:
    """A row as one line, for people who wait."""
    ratio = f", {row.ratio:.2f} x {row.floor_is}" if row.ratio is not None else ""
    what = " ".join(word for word in (row.part, row.what, row.isolation, f"{row.nodes} nodes", size(row.bytes)) if word)
    return f"  {what}: {shown(row.median, row.unit)}{ratio}"


def show(rows: list[Row], console: Console) -> None:
    """The table, one for each part."""
    for part in dict.fromkeys(row.part for row in rows):
        chosen = [row for row in rows if row.part == part]
        more = {key: name for key, name in SHOWN_MORE.items() if any(key in row.more for row in chosen)}
        table = Table(title=part, title_justify="left", title_style="bold")
        for name in ("what", "isolation"):
            table.add_column(name)
        for name in ("nodes", "payload", "median", "min", "max", "floor"):
            table.add_column(name, justify="right")
        table.add_column("floor is")
        table.add_column("ratio", justify="right")
        table.add_column("to reach", justify="right")
        for name in more.values():
            table.add_column(name, justify="right")
        for row in chosen:
            table.add_row(*cells(row), *(extra(row, key) for key in more))
        console.print(table)


def cells(row: Row) -> list[str]:
    """What every row shows."""
    goal = ""
    if row.goal is not None:
        limit = f"{row.goal.limit:g} x" if row.goal.measure == "ratio" else shown(row.goal.limit, row.unit)
        mark = {True: "[green]✓[/green]", False: "[red]✗[/red]", None: "?"}[row.goal.met(row)]
        goal = f"{row.goal.side} {limit} {mark}"
    return [
        row.what,
        row.isolation,
        str(row.nodes),
        size(row.bytes),
        *(shown(value, row.unit) for value in (row.median, min(row.samples), max(row.samples), row.floor)),
        row.floor_is,
        f"{row.ratio:.2f}" if row.ratio is not None else "–",
        goal,
    ]


def extra(row: Row, key: str) -> str:
    """A further figure."""
    value = row.more.get(key)
    if value is None:
        return ""
    return shown(value, "bytes") if "bytes" in key else f"{value:.1f}"


if __name__ == "__main__":
    main(prog_name="scripts/bench")
