"""key=value words are typed as in TOML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedq.cli.values import parse_labels, parse_pairs, parse_value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-3", -3),
        ("1_000", 1000),
        ("0x1f", 31),
        ("3.0", 3.0),
        ("1e-3", 1e-3),
        ("true", True),
        ("false", False),
        ('"3"', "3"),
        ("'a b'", "a b"),
        ("adam", "adam"),
        ("True", "True"),
        ("/data/train.csv", "/data/train.csv"),
        ("0.1.2", "0.1.2"),
        ("a=b", "a=b"),
        ("3\nother = 4", "3\nother = 4"),
        ("3 # three", 3),
    ],
)
def test_a_value_has_the_type_that_toml_gives_it_and_a_bare_word_is_a_string(text: str, value: Any) -> None:
    parsed = parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


@given(st.text())
def test_any_text_is_a_value_or_refused_by_value_error(text: str) -> None:
    try:
        assert isinstance(parse_value(text), (bool, int, float, str))
    except ValueError:
        pass


def test_of_one_key_the_last_word_counts() -> None:
    assert parse_pairs(["a=1", "b.c=x", "a=2"], "--config") == {"a": 2, "b.c": "x"}


@pytest.mark.parametrize("word", ["", "a", "=1", "a b=1", "a..b=1", ".a=1", 'a"=1'])
def test_a_word_that_is_no_pair_is_wrong_usage(word: str) -> None:
    with pytest.raises(click.BadParameter, match="key=value"):
        parse_pairs([word], "--config")


def test_a_toml_file_stands_for_its_flattened_content(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('rounds = 3\n[model]\nname = "mlp"\n[model.layer]\nwidth = 4\n')
    assert parse_pairs([str(path), "rounds=5"], "--config") == {
        "rounds": 5,
        "model.name": "mlp",
        "model.layer.width": 4,
    }


@pytest.mark.parametrize(("content", "says"), [("rounds = ", "no TOML"), ("a = [1]", "list"), (None, "No such file")])
def test_a_toml_file_that_cannot_be_used_is_wrong_usage(tmp_path: Path, content: str | None, says: str) -> None:
    path = tmp_path / "c.toml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(click.BadParameter, match=says):
        parse_pairs([str(path)], "--config")


def test_labels_are_strings_on_both_sides() -> None:
    assert parse_labels(["site=eu", "gpu=1"], "--label") == {"site": "eu", "gpu": "1"}
    with pytest.raises(click.BadParameter, match="label=value"):
        parse_labels(["site="], "--label")
