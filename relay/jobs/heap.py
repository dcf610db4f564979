"""Memory that a process has freed and may keep for the next arrays.

The C library gives large pieces back to the kernel at once and takes them anew for the next message, page by page and
each page cleared. In processes that live through many messages that is a tenth to a fifth of their work for large
models.
"""

from __future__ import annotations

import os

from fedq.relay.jobs.libc import function

__all__ = ["keep_freed"]

KEPT = 128 * 1024 * 1024
"""Bytes that a process may keep at the end of its memory. Each further thread may keep what the library always lets it,
up to 64 MiB."""
PIECE = 32 * 1024 * 1024
"""Bytes from which on a piece is always given back: the most that the library allows."""

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_MAX_")


def keep_freed() -> bool:
    """Let this process keep up to :data:`KEPT` bytes of what it frees; whether it does.

    Only with the GNU C library, and not where the environment has settings of its own for that.
    """
    if any(name in os.environ for name in _SETTINGS) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    mallopt = function("mallopt")
    if mallopt is None or function("gnu_get_libc_version") is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, PIECE) and mallopt(_M_TRIM_THRESHOLD, KEPT))
