"""How results are printed: aligned tables for people, JSON for programs."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import click


def print_json(value: Any) -> None:
    """One JSON document on stdout. NaN and infinities, which JSON does not know, become null."""
    click.echo(json.dumps(jsonable(value), indent=2, ensure_ascii=False, allow_nan=False))


def print_json_line(value: Any) -> None:
    """One JSON document on one line, flushed: a stream of them is JSON Lines."""
    click.echo(json.dumps(jsonable(value), ensure_ascii=False, allow_nan=False))


def jsonable(value: Any) -> Any:
    """``value`` with only what JSON can hold."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (str, int, bool)) or value is None:
        return value
    if isinstance(value, (bytes, bytearray)):
        return bytes(value).decode("utf-8", "replace")
    if isinstance(value, (Sequence, set, frozenset)):
        return [jsonable(item) for item in (sorted(value) if isinstance(value, (set, frozenset)) else value)]
    return str(value)


def print_table(headings: Sequence[str], rows: Sequence[Sequence[object]], *, empty: str) -> None:
    """Columns padded with spaces, numbers to the right; ``empty`` when there are no rows."""
    if not rows:
        click.echo(empty)
        return
    cells = [[_cell(value) for value in row] for row in rows]
    columns = list(zip(*cells, strict=True))
    numeric = [all(map(_is_number, column)) for column in columns]
    widths = [max(len(heading), *map(len, column)) for heading, column in zip(headings, columns, strict=True)]

    form = "  ".join(
        f"{{:{'>' if right else '<'}{width}}}" for width, right in zip(widths, numeric, strict=True)
    ).format

    def line(texts: Sequence[str]) -> str:
        return form(*texts).rstrip()

    # At once: a write for each of ten thousand lines takes longer than to make them.
    click.echo("\n".join([click.style(line(headings), bold=True), *map(line, cells)]))


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return cell == "-"
    return True


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return str(value)
    words = str(value).split() if value is not None else []
    return " ".join(words) or "-"


def ago(moment: float | None, *, now: float | None = None) -> str:
    """How long ago a moment (seconds since the epoch) was: ``12 s ago``; ``-`` for None and 0."""
    if not moment:
        return "-"
    return f"{span(max(0.0, (time.time() if now is None else now) - moment))} ago"


def span(seconds: float | None) -> str:
    """A length of time for people: ``0.4 s``, ``12 s``, ``3 min``, ``5.2 h``, ``9 d``."""
    if seconds is None:
        return "-"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    if seconds < 172800:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.0f} d"


def size(count: float) -> str:
    """A number of bytes for people: ``812 B``, ``1.4 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def number(value: object, digits: int = 4) -> str:
    """A metric for people: four digits after the point for floats."""
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, float):
        return f"{value:.{digits}f}" if 1e-3 <= abs(value) < 1e5 or value == 0 else f"{value:.{digits}g}"
    return str(value)
