"""The check that MetricRecord and ConfigRecord share: scalars of certain types, or lists of one such type."""

from __future__ import annotations

from typing import Any

__all__ = ["check_values"]


def check_values(key: Any, value: Any, allowed: tuple[type, ...], allow_bool: bool, expected: str, what: str) -> None:
    """Raise TypeError unless `value` is a scalar of the allowed types, or a list of scalars of one of them.

    As in Flower, the first element of a list decides and the others must be instances of its type, so that NumPy's
    float64, which is a float, is accepted and float32, which is none, is not.
    """
    if type(value) in allowed and type(value) is not bool:
        return
    first = value
    if isinstance(value, list):
        if not value:
            return
        first = value[0]
    if not isinstance(first, allowed) or (isinstance(first, bool) and not allow_bool):
        raise TypeError(f"a {what} holds {expected}, not {_describe(first)} (key {key!r})")
    if first is not value:
        kind = type(first)
        # Millions of floats are looked at one by one only if they are not all of exactly one type.
        if set(map(type, value)) != {kind} and not all(isinstance(element, kind) for element in value):
            raise TypeError(f"all elements of a list in a {what} have the same type, one of {expected} (key {key!r})")


def _describe(value: Any) -> str:
    kind = type(value)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
    return f"{name}: convert it with float() or int()" if kind.__module__ == "numpy" else name
