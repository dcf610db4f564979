"""What counts as bytes."""

from __future__ import annotations

from typing import TypeAlias

__all__ = ["Buffer"]

Buffer: TypeAlias = bytes | bytearray | memoryview
"""Bytes, or contiguous memory that looks like bytes."""
