"""Texts as the server answers them."""

from __future__ import annotations


def text(value: bytes | str | int) -> str:
    """A server's answer as str."""
    return value.decode() if isinstance(value, bytes) else str(value)


def words(value: bytes | str) -> tuple[str, ...]:
    """Space-separated digests as a tuple."""
    return tuple(text(value).split())
