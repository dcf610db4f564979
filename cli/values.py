"""``key=value`` words of the command line, typed as in TOML."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

Value = bool | int | float | str

_KEY = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\Z")


def parse_value(text: str) -> Value:
    """The value that ``text`` has in TOML; a bare word, which TOML does not know, is a string.

    ``3`` is an int, ``3.0`` and ``1e-3`` are floats, ``true`` is a bool, ``"3"`` and ``adam`` are strings.
    Raises ValueError for dates, lists and tables, which a config does not hold.
    """
    try:
        value = tomllib.loads(f"value = {text}")["value"] if "\n" not in text and "\r" not in text else text
    except (tomllib.TOMLDecodeError, KeyError):
        return text
    if not isinstance(value, (bool, int, float, str)):
        raise ValueError(f"{text} is a {type(value).__name__}; a config value is a bool, a number or a string")
    return value


def parse_pairs(words: Iterable[str], option: str) -> dict[str, Value]:
    """The typed dict of ``key=value`` words; of one key, the last one counts.

    A word without ``=`` that names a TOML file stands for that file's (flattened) content. Raises click.BadParameter.
    """
    values: dict[str, Value] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals and word.endswith(".toml"):
            values.update(_of_file(Path(word), option))
            continue
        if not equals or not _KEY.match(key.strip()):
            raise click.BadParameter(f"{word!r} is not of the form key=value", param_hint=option)
        try:
            values[key.strip()] = parse_value(text.strip())
        except ValueError as error:
            raise click.BadParameter(f"{key.strip()}: {error}", param_hint=option) from error
    return values


def parse_labels(words: Iterable[str], option: str) -> dict[str, str]:
    """The labels of ``key=value`` words; both sides are strings. Raises click.BadParameter."""
    labels: dict[str, str] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not _KEY.match(key.strip()) or not text.strip():
            raise click.BadParameter(f"{word!r} is not of the form label=value", param_hint=option)
        labels[key.strip()] = text.strip()
    return labels


def _of_file(path: Path, option: str) -> dict[str, Value]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise click.BadParameter(f"{path}: {error.strerror}", param_hint=option) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise click.BadParameter(f"{path} is no TOML file: {error}", param_hint=option) from error
    return _flat(table, "", f"{path}", option)


def _flat(table: dict[str, Any], prefix: str, where: str, option: str) -> dict[str, Value]:
    flat: dict[str, Value] = {}
    for key, value in table.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            flat.update(_flat(value, f"{name}.", where, option))
        elif isinstance(value, (bool, int, float, str)):
            flat[name] = value
        else:
            raise click.BadParameter(
                f"{where}: {name} is a {type(value).__name__}; a config value is a bool, a number or a string",
                param_hint=option,
            )
    return flat
