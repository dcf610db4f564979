"""A History as comma-separated values and as JSON, and back."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from typing import TYPE_CHECKING, Any

from fedq.apps.files import write_whole
from fedq.apps.history.round import COUNTS, PARTS, Round, Value, read_metrics

if TYPE_CHECKING:
    from fedq.apps.history.history import History


def to_csv(history: History, path: str | os.PathLike[str] | None) -> str:
    """See `History.to_csv`."""
    names = history.names
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["step", "strategy", "round", *COUNTS, *names])
    for ended in history.rounds:
        scalars = ended.scalars()
        counts = [getattr(ended, name) for name in COUNTS]
        # csv writes floats by repr, and None as nothing.
        writer.writerow([ended.step, ended.strategy, ended.number, *counts, *(scalars.get(name) for name in names)])
    return _written(file.getvalue(), path)


def to_json(history: History, path: str | os.PathLike[str] | None) -> str:
    """See `History.to_json`."""
    return _written(json.dumps(to_dict(history), indent=2, ensure_ascii=False, allow_nan=False) + "\n", path)


def to_dict(history: History) -> dict[str, Any]:
    """See `History.to_dict`."""
    return {"rounds": [_round_as_dict(ended) for ended in history.rounds]}


def rounds_of(text: str | bytes) -> list[Round]:
    """See `History.from_json`."""
    try:
        document = json.loads(text)
        found = [_round_from_dict(item) for item in document["rounds"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"this is no history as History.to_json writes it: {type(error).__name__}: {error}") from error
    return found


def _round_as_dict(ended: Round) -> dict[str, Any]:
    return {
        "step": ended.step,
        "strategy": ended.strategy,
        "round": ended.number,
        **{name: getattr(ended, name) for name in COUNTS},
        **{part: {name: _finite(value) for name, value in getattr(ended, part).items()} for part in PARTS},
    }


def _round_from_dict(item: dict[str, Any]) -> Round:
    number = int(item["round"])
    known: dict[str, Any] = {name: item.get(name) for name in COUNTS}
    known |= {part: read_metrics(item.get(part)) for part in PARTS}
    known |= {"strategy": int(item.get("strategy", 1)), "offset": int(item.get("step", number)) - number}
    return Round(number, **known)


def _finite(value: Value) -> Any:
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value if math.isfinite(value) else None


def _written(text: str, path: str | os.PathLike[str] | None) -> str:
    if path is not None:
        write_whole(path, lambda file: file.write(text.encode()))
    return text
