"""Dictionaries that check what is put into them."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView, MutableMapping, ValuesView
from typing import Any, Generic, Self, TypeVar

__all__ = ["TypedDict"]

K = TypeVar("K")
V = TypeVar("V")


class TypedDict(MutableMapping[K, V], Generic[K, V]):
    """A mapping that keeps the order of insertion and refuses keys and values of wrong types with TypeError.

    Equal to a dict or another TypedDict with equal items. Not hashable.
    """

    __slots__ = ("__dict__", "_data")

    _data: dict[K, V]

    def __init__(self) -> None:
        self._data = {}

    def _check_key(self, key: Any) -> None:
        """Raise TypeError unless `key` can be a key."""
        if not isinstance(key, str):
            raise TypeError(f"a key of {type(self).__name__} is a str, not {type(key).__name__}: {key!r}")

    def _check_value(self, key: Any, value: Any) -> None:
        """Raise TypeError unless `value` can be a value; `key` is for the text."""
        raise NotImplementedError

    def __setitem__(self, key: K, value: V) -> None:
        self._check_key(key)
        self._check_value(key, value)
        self._data[key] = value

    def __delitem__(self, key: K) -> None:
        del self._data[key]

    def __getitem__(self, key: K) -> V:
        return self._data[key]

    def __iter__(self) -> Iterator[K]:
        return iter(self._data)

    def __len__(self) -> int:
        return len(self._data)

    def __contains__(self, key: object) -> bool:
        return key in self._data

    def __repr__(self) -> str:
        return repr(self._data)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, TypedDict):
            return self._data == other._data
        if isinstance(other, dict):
            return self._data == other
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]

    # The views of the dict itself are faster than those that MutableMapping makes.
    def keys(self) -> KeysView[K]:
        """The keys, in order of insertion."""
        return self._data.keys()

    def values(self) -> ValuesView[V]:
        """The values, in order of insertion."""
        return self._data.values()

    def items(self) -> ItemsView[K, V]:
        """The pairs of key and value, in order of insertion."""
        return self._data.items()

    def copy(self) -> Self:
        """A shallow copy."""
        new = type(self).__new__(type(self))
        new._data = self._data.copy()
        return new
