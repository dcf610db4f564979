"""A process that is forked over and over may have its memory in large pages, and it has the same values there."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import sys
from types import SimpleNamespace

import pytest

from fedq.relay.jobs import pages


def large_pages(address: int) -> int:
    """Bytes in large pages of the mapping that holds this address."""
    here = False
    with open("/proc/self/smaps") as lines:
        for line in lines:
            first, _, rest = line.partition(" ")
            if "-" in first and not first.endswith(":"):
                start, end = (int(part, 16) for part in first.split("-"))
                here = start <= address < end
            elif here and first == "AnonHugePages:":
                return int(rest.split()[0]) * 1024
    raise AssertionError("there is no such mapping")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has it")
def test_memory_that_lies_close_together_comes_into_large_pages_and_keeps_its_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with mmap.mmap(-1, 4 * pages.LARGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_NOHUGEPAGE)
        for at in range(0, len(memory), mmap.PAGESIZE):
            memory[at] = at // mmap.PAGESIZE % 251
        memory.madvise(mmap.MADV_HUGEPAGE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        piece = -(-address // pages.LARGE) * pages.LARGE
        monkeypatch.setattr(pages, "_pieces", lambda: iter([piece, piece + pages.LARGE]))
        before = large_pages(address)

        steps = len(list(pages.collapse()))

        if steps < 2:
            pytest.skip("this kernel does not do it, or has no large page to spare")
        assert (before, large_pages(address)) == (0, 2 * pages.LARGE)
        assert all(memory[at] == at // mmap.PAGESIZE % 251 for at in range(0, len(memory), mmap.PAGESIZE))
        child = os.fork()
        if child == 0:
            memory[0] = 77
            os._exit(memory[0])
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 77
        assert memory[0] == 0
        del address


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has it")
def test_the_pieces_are_whole_ones_of_this_process() -> None:
    with mmap.mmap(-1, 4 * pages.LARGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        pieces = [at for at in pages._pieces() if address <= at < address + len(memory)]
    assert len(pieces) >= 3
    assert all(at % pages.LARGE == 0 and at + pages.LARGE <= address + 4 * pages.LARGE for at in pieces)


@pytest.mark.parametrize(("refusal", "tried"), [(errno.EINVAL, 5), (errno.ENOMEM, 1)])
def test_where_nothing_is_it_goes_on_and_where_there_is_no_page_to_spare_it_ends(
    monkeypatch: pytest.MonkeyPatch, refusal: int, tried: int
) -> None:
    calls: list[int] = []

    def madvise(start: int, length: int, advice: int) -> int:
        calls.append(start)
        ctypes.set_errno(refusal)
        return -1

    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: SimpleNamespace(madvise=madvise))
    monkeypatch.setattr(pages, "_pieces", lambda: iter(range(10)))
    monkeypatch.setattr(pages, "MOST", 5)

    assert len(list(pages.collapse())) == (tried if refusal == errno.EINVAL else 0)
    assert len(calls) == tried


def test_other_systems_have_none_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert list(pages.collapse()) == []
