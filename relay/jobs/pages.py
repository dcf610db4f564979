"""Memory of processes that are forked over and over, in large pages.

A fork copies an entry for each page of its parent's memory, and the end of the forked process takes each back. Of 2 MiB
in one page it is one entry; what the process writes to is copied in pages of 4 KiB all the same.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import re
import sys

__all__ = ["collapse"]

log = logging.getLogger(__name__)

MOST = 32
"""Large pages that a process is brought into: each takes up to some milliseconds."""

LARGE = 2 * 1024 * 1024
"""Bytes of a large page, where it is not of another size: then nothing is collapsed."""

_MADV_COLLAPSE = 25
"""Since Linux 6.1. Does it at once, in whatever mode the machine's transparent huge pages are."""

_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw-p \S+ 00:00 0 *(\[heap\])?\n")


def collapse() -> int:
    """Bring the anonymous memory of this process into large pages as far as it lies close enough; how many there are.

    Takes some ten milliseconds, and memory of its own for what was shared with the process that this one was forked
    from. 0 where the kernel does not do it.
    """
    if sys.platform != "linux":
        return 0
    done = 0
    with contextlib.suppress(OSError, AttributeError):
        advise = ctypes.CDLL(None, use_errno=True).madvise
        advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        with open("/proc/self/maps") as maps:
            mappings = [found for found in map(_MAPPING.fullmatch, maps) if found is not None]
        for mapping in mappings:
            start, end = (int(mapping[group], 16) for group in (1, 2))
            for at in range(-(-start // LARGE) * LARGE, end // LARGE * LARGE, LARGE):
                done += done < MOST and advise(at, LARGE, _MADV_COLLAPSE) == 0
        log.debug("%d MiB of this process are in large pages", done * LARGE >> 20)
    return done
