"""A SuperNode that could not work says so before it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedq.node.settings import NodeSettings, SettingsError, default_cache_dir, parse_config, parse_labels
from fedq.relay.keys import InvalidName


def test_config_is_typed_as_in_toml() -> None:
    config = parse_config(["partition-id=3", "rate = 0.5", "cuda=true", 'name="x y"', "path=/data/a", "word=abc"])

    assert config == {
        "partition-id": 3, "rate": 0.5, "cuda": True, "name": "x y", "path": "/data/a", "word": "abc",
    }  # fmt: skip
    assert type(config["partition-id"]) is int
    assert config["cuda"] is True


def test_a_date_stays_a_text() -> None:
    assert parse_config(["day=2026-11-24"]) == {"day": "2026-11-24"}


@pytest.mark.parametrize("pair", ["partition-id", "=3", " = 3"])
def test_a_pair_without_key_or_value_is_refused(pair: str) -> None:
    with pytest.raises(SettingsError, match="is not key=value"):
        parse_config([pair])


def test_a_key_given_twice_is_refused() -> None:
    with pytest.raises(SettingsError, match="a is given twice"):
        parse_config(["a=1", "a=2"])


@pytest.mark.parametrize("text", ["a=[1, 2]", "a={b = 1}"])
def test_a_value_that_is_no_scalar_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="config a holds a"):
        parse_config([text])


def test_labels_are_texts() -> None:
    assert parse_labels(["site=eu", "gpu = 1"]) == {"site": "eu", "gpu": "1"}
    with pytest.raises(SettingsError, match="name=value"):
        parse_labels(["eu"])


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"isolation": "thread"}, "isolation 'thread'"),
        ({"slots": 0}, "at least one slot"),
        ({"grace": -1.0}, "grace"),
        ({"time_limit": 0.0}, "time limit"),
        ({"threads": 0}, "threads"),
        ({"log_format": "xml"}, "log format"),
        ({"lease": 0.5}, "lease"),
        ({"config": {"a": None}}, "config a holds a NoneType"),
    ],
)
def test_a_setting_that_cannot_work_is_named(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        NodeSettings("clinic-a", **wrong)


def test_a_name_that_keys_cannot_hold_is_refused() -> None:
    with pytest.raises(InvalidName, match="clinic_a"):
        NodeSettings("clinic_a")


def test_the_cache_folder_follows_the_users_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    assert default_cache_dir() == tmp_path / "fedq"
    assert NodeSettings("a").cache_folder == tmp_path / "fedq"
    assert NodeSettings("a", cache_dir=tmp_path / "x").cache_folder == tmp_path / "x"
