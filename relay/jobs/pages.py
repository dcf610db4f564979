"""Memory of processes that are forked over and over, in large pages.

A fork copies an entry for each page of its parent's memory, and the end of the forked process takes each back. Of 2 MiB
in one page it is one entry; what the process writes to is copied in pages of 4 KiB all the same.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import re
from collections.abc import Iterator
from itertools import islice

from fedq.relay.jobs.libc import function

__all__ = ["collapse"]

MOST = 64
"""Pieces of memory that are tried: each takes up to some milliseconds."""

LARGE = 2 * 1024 * 1024
"""Bytes of a large page, where it is not of another size: then nothing is collapsed."""

_MADV_COLLAPSE = 25
"""Since Linux 6.1. Does it at once, in whatever mode the machine's transparent huge pages are."""

_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw-p \S+ 00:00 0 *(\[heap\])?\n")


def collapse() -> Iterator[None]:
    """Bring the anonymous memory of this process into large pages as far as it lies close enough, one at each step.

    Takes memory of its own for what was shared with the process that this one was forked from. Where the kernel does
    not do it, or has no large page to spare, nothing changes.
    """
    if (madvise := function("madvise")) is None:
        return
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    with contextlib.suppress(OSError):
        for start in islice(_pieces(), MOST):
            # EINVAL: nothing is there.
            if madvise(start, LARGE, _MADV_COLLAPSE) and ctypes.get_errno() != errno.EINVAL:
                return
            yield


def _pieces() -> Iterator[int]:
    """Where a large page could begin, in the anonymous memory of this process."""
    with open("/proc/self/maps") as maps:
        mappings = [found for found in map(_MAPPING.fullmatch, maps) if found is not None]
    for mapping in mappings:
        start, end = (int(mapping[group], 16) for group in (1, 2))
        yield from range(-(-start // LARGE) * LARGE, end // LARGE * LARGE, LARGE)
