"""A process that is forked over and over may have its memory in large pages, and it has the same values there."""

from __future__ import annotations

import mmap
import os
import platform
import sys

import pytest

from fedq.relay.jobs import pages


def large_pages() -> int:
    """Bytes of this process that are in large pages."""
    with open("/proc/self/smaps_rollup") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("AnonHugePages:"))


def has_collapse() -> bool:
    if sys.platform != "linux" or not os.path.exists("/sys/kernel/mm/transparent_hugepage"):
        return False
    return tuple(int(part) for part in platform.release().split(".")[:2]) >= (6, 1)


@pytest.mark.skipif(not has_collapse(), reason="needs Linux 6.1 with transparent huge pages")
def test_memory_that_lies_close_together_comes_into_large_pages_and_keeps_its_bytes() -> None:
    with mmap.mmap(-1, 4 * pages.LARGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_NOHUGEPAGE)
        for at in range(0, len(memory), mmap.PAGESIZE):
            memory[at] = at // mmap.PAGESIZE % 251
        memory.madvise(mmap.MADV_HUGEPAGE)
        before = large_pages()
        done = pages.collapse()
        if not done:
            pytest.skip("this machine has no large page to spare")
        assert large_pages() > before
        assert all(memory[at] == at // mmap.PAGESIZE % 251 for at in range(0, len(memory), mmap.PAGESIZE))
        child = os.fork()
        if child == 0:
            memory[0] = 77
            os._exit(memory[0])
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 77
        assert memory[0] == 0


def test_a_kernel_that_does_not_do_it_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "_MADV_COLLAPSE", 12345)
    assert pages.collapse() == 0
    monkeypatch.setattr(sys, "platform", "darwin")
    assert pages.collapse() == 0
