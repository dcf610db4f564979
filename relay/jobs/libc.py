"""Functions of the C library that Python has no name for."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

__all__ = ["function"]


def function(name: str) -> Any | None:
    """The function of that name on Linux; None elsewhere, and where the library has none."""
    if sys.platform != "linux":
        return None
    try:
        return getattr(ctypes.CDLL(None, use_errno=True), name)
    except (OSError, AttributeError):
        return None
