"""Configs as people write them: names and plain values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from fedq.apps.errors import ConfigError

__all__ = ["UserConfig", "UserConfigValue", "check_user_config"]

UserConfigValue: TypeAlias = bool | float | int | str
UserConfig: TypeAlias = dict[str, UserConfigValue]


def check_user_config(config: Mapping[Any, Any], what: str = "config") -> UserConfig:
    """A copy of `config` as a UserConfig. Raises ConfigError, naming the key, for what a config cannot hold.

    Subclasses of the four types, such as a NumPy float64, become the plain type.
    """
    if not isinstance(config, Mapping):
        raise ConfigError(f"the {what} is a mapping of names to values, not {type(config).__name__}")
    checked: UserConfig = {}
    for key, value in config.items():
        if not isinstance(key, str):
            raise ConfigError(f"the {what} has the key {key!r}: keys are str, not {type(key).__name__}")
        if isinstance(value, bool):
            checked[key] = value
        elif isinstance(value, int):
            checked[key] = int(value)
        elif isinstance(value, float):
            checked[key] = float(value)
        elif isinstance(value, str):
            checked[key] = str(value)
        else:
            raise ConfigError(
                f"the {what} has {key} = {value!r} of type {type(value).__name__}: values are bool, int, float or str"
            )
    return checked
