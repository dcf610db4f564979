"""Named settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedq.apps.scalars import check_values
from fedq.apps.typeddict import TypedDict
from fedq.apps.typing import ConfigRecordValues

__all__ = ["ConfigRecord"]

_EXPECTED = "bool, int, float, str, bytes or lists of one of them"


class ConfigRecord(TypedDict[str, ConfigRecordValues]):
    """A mapping of names to bool, int, float, str, bytes, or a list of one of them::

        ConfigRecord({"lr": 0.1, "optimizer": "sgd", "layers": [64, 32], "augment": True})

    Other objects can be put in as bytes, in whatever form their author chooses.

    Parameters
    ----------
    config_dict
        What to start with.
    keep_input
        If False, `config_dict` is emptied on the way.

    Raises TypeError for other keys and values.
    """

    __slots__ = ()

    def __init__(self, config_dict: dict[str, ConfigRecordValues] | None = None, keep_input: bool = True) -> None:
        super().__init__()
        if config_dict:
            if not isinstance(config_dict, Mapping):
                raise TypeError(f"a ConfigRecord is made of a dict, not of {type(config_dict).__name__}")
            for key in list(config_dict):
                self[key] = config_dict[key]
                if not keep_input:
                    del config_dict[key]

    def _check_value(self, key: Any, value: Any) -> None:
        check_values(key, value, (int, float, str, bytes, bool), True, _EXPECTED, "ConfigRecord")

    def count_bytes(self) -> int:
        """Size in bytes: 8 for a number, 1 for a bool, the length of a str or bytes, and the lengths of the names."""
        return sum(len(key) + _size(value) for key, value in self._data.items())


def _size(value: Any) -> int:
    if isinstance(value, list):
        return sum(map(_size, value))
    if isinstance(value, bool):
        return 1
    return len(value) if isinstance(value, str | bytes) else 8
