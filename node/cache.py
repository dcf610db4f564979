"""Arrays that a node has seen, so that they do not travel again.

On disk there is one file per array, named by its digest. Any number of processes may share the folder. Nothing here is
the only copy of anything: a file that is missing, short or damaged is a miss.

A large array from the server is written to its file part by part as it comes, while it is in the processor's cache, and
used from there. That takes less than half of the processor time of receiving it into memory and writing a file
afterwards, or of receiving it straight into the file's memory, which the kernel hands out page by page.
"""

from __future__ import annotations

import abc
import contextlib
import errno
import fcntl
import logging
import mmap
import os
import re
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakSet

from fedq.apps.digest import digest_of

if TYPE_CHECKING:
    from fedq.relay.objects import Memory, Place

logger = logging.getLogger(__name__)

DEFAULT_LIMIT = 2 * 1024**3
"""Bytes on disk that the cache of a node may take."""

SHARE = 16
"""One part in so many of the limit may come before the files are listed again."""

MAPPED_FROM = 256 * 1024
"""Bytes from which on an array lies in its file's memory while it is used. Smaller ones are copied: each such piece of
memory takes a file descriptor."""

MAPPED_AT_ONCE = 128
"""Arrays of which a process has the file's memory at a time."""

_DIGEST = re.compile(r"[0-9a-f]{64}\Z")

PART = 256 * 1024
"""Bytes that are written to a file at a time."""

_NAMELESS = hasattr(os, "O_TMPFILE")
"""Whether this system has files without a name, which may get one later."""

_OUR_FAULT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.EPERM)
"""Errors that say nothing about the file."""


class ArrayCache(abc.ABC):
    """Arrays by their digest. Whatever is found has the bytes that its digest says, and is read-only."""

    @abc.abstractmethod
    def get(self, digest: str, nbytes: int | None = None) -> memoryview | None:
        """The bytes of ``digest``; None on a miss, which an array of another length than ``nbytes`` is."""

    def get_many(self, digests: Mapping[str, int]) -> dict[str, memoryview]:
        """What is there of ``digests`` (digest -> bytes)."""
        found = ((digest, self.get(digest, nbytes)) for digest, nbytes in digests.items())
        return {digest: view for digest, view in found if view is not None}

    @abc.abstractmethod
    def put(self, blobs: Mapping[str, bytes | bytearray | memoryview]) -> None:
        """Keep arrays whose digests the caller has verified, as far as there is room."""

    def make_room(self, sizes: Iterable[int]) -> None:  # noqa: B027
        """Arrays of so many bytes are about to be received."""

    def place(self, digest: str, nbytes: int) -> Place | None:
        """Where to receive an array into, which is kept once it is verified. None: anywhere, and it is for `put`."""
        return None


class ObjectCache(ArrayCache):
    """Arrays by digest in ``folder``, of at most ``limit`` bytes together; the longest unused go first. Those in use do
    not count: they are gone when nobody uses them any more.

    A limit of 0 switches it off. Errors of the file system are logged once and count as misses. Listing the files takes
    longer than adding one, so that some room is made in advance, and they are listed when that is used up.
    """

    def __init__(self, folder: Path | str, limit: int = DEFAULT_LIMIT) -> None:
        self.folder = Path(folder)
        self.limit = limit
        self._complained = False
        self._added = 0
        self._mapped: WeakSet[mmap.mmap] = WeakSet()
        self._parts: list[memoryview] = []

    def get(self, digest: str, nbytes: int | None = None) -> memoryview | None:
        if self.limit <= 0 or not _DIGEST.match(digest):
            return None
        path = self._path(digest)
        try:
            with open(path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size == 0 or (nbytes is not None and size != nbytes):
                    raise ValueError("wrong size")
                mapped = size >= MAPPED_FROM and len(self._mapped) < MAPPED_AT_ONCE
                view = self._map(file.fileno(), size) if mapped else memoryview(file.read())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            self._complain(error)
            if getattr(error, "errno", None) not in _OUR_FAULT:
                self._drop(path)
            return None
        if digest_of(view) != digest:
            view.release()
            self._drop(path)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return view

    def _map(self, file: int, nbytes: int) -> memoryview:
        """The file's memory, which nobody can write to."""
        pages = mmap.mmap(file, nbytes, access=mmap.ACCESS_READ)
        self._mapped.add(pages)
        return memoryview(pages)

    def make_room(self, sizes: Iterable[int]) -> None:
        """Arrays of so many bytes are about to be received. Those that `place` takes are charged now, so that what a
        killed process leaves behind is charged as well.
        """
        self._added += sum(size for size in sizes if MAPPED_FROM <= size <= self.limit)
        self._trim()

    def place(self, digest: str, nbytes: int) -> Place | None:
        """A file without a name to receive an array into, which appears under its digest once it is verified: nothing
        is left of it if the process is killed before.
        """
        if not MAPPED_FROM <= nbytes <= self.limit or not _DIGEST.match(digest) or not _NAMELESS:
            return None
        if len(self._mapped) >= MAPPED_AT_ONCE or sum(map(len, self._mapped)) + nbytes > self.limit:
            return None
        path = self._path(digest)
        try:
            return _Nameless(self, path, nbytes)
        except OSError as error:
            logger.debug("an array is received in memory instead of the cache in %s: %s", self.folder, error)
            return None

    def put(self, blobs: Mapping[str, bytes | bytearray | memoryview]) -> None:
        """Keep arrays whose digests the caller has verified. Each appears whole or not at all."""
        for digest, blob in blobs.items():
            view = memoryview(blob)
            if not _DIGEST.match(digest) or view.nbytes == 0 or view.nbytes > self.limit:
                continue
            path = self._path(digest)
            if os.path.exists(path):
                continue
            shelf = os.path.dirname(path)
            part = os.path.join(shelf, f".{secrets.token_hex(8)}.part")
            try:
                os.makedirs(shelf, exist_ok=True)
                with open(part, "xb") as file:
                    file.write(view)
                os.replace(part, path)
                self._added += view.nbytes
            except OSError as error:
                self._complain(error)
                self._drop(part)
                break
        self._trim()

    def _trim(self) -> None:
        """Delete the longest unused files until the rest fits, if enough was added for that. Does nothing while another
        process is at it.
        """
        if not self._added or self.limit <= 0:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(self.folder / ".lock", "a+b") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    return
                lock.seek(0)
                room, limit = _noted(lock.read(50))
                room = (min(room, self.limit // SHARE) if limit == self.limit else 0) - self._added
                self._added = 0
                if room < 0:
                    room = self._listed()
                lock.truncate(0)
                lock.write(b"%d|%d" % (room, self.limit))
        except OSError as error:
            self._complain(error)

    def _listed(self) -> int:
        """Bytes that may be added until the files are to be listed again."""
        files = sorted(self._files())
        total = sum(size for _, size, _ in files)
        if total > self.limit:
            for _, size, path in files:
                if total <= self.limit - self.limit // SHARE:
                    break
                self._drop(path)
                total -= size
        return min(self.limit - total, self.limit // SHARE)

    def _files(self) -> Iterable[tuple[float, int, str]]:
        for shelf in self.folder.iterdir():
            if shelf.is_dir():
                for entry in os.scandir(shelf):
                    with contextlib.suppress(OSError):
                        status = entry.stat()
                        yield status.st_mtime, status.st_size, entry.path

    def _path(self, digest: str) -> str:
        return os.path.join(self.folder, digest[:2], digest)

    def _drop(self, path: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(path)

    def _complain(self, error: Exception) -> None:
        if not self._complained:
            self._complained = True
            logger.warning("the array cache in %s is not used: %s", self.folder, error)


class _Nameless:
    """A file without a name, to which an array is written as it arrives, and the name that it is to get.

    Where it cannot be written, on a disk that is full, the array goes on in memory.
    """

    def __init__(self, cache: ObjectCache, path: str, nbytes: int) -> None:
        self._cache = cache
        self._path = path
        self._nbytes = nbytes
        self._memory: Memory | None = None
        self._written = 0
        self._waiting = 0  # bytes in the part that is to be written next
        self._part = cache._parts.pop() if cache._parts else memoryview(bytearray(PART))
        self._file = _without_a_name(os.path.dirname(path))

    def room(self, left: int) -> memoryview:
        if self._memory is not None:
            return self._memory.room(left)
        return self._part[self._waiting : self._waiting + left]

    def filled(self, count: int) -> None:
        if self._memory is not None:
            self._memory.filled(count)
            return
        self._waiting += count
        if self._waiting == PART or self._written + self._waiting == self._nbytes:
            part, self._waiting = self._part[: self._waiting], 0
            try:
                while part:
                    count = os.write(self._file, part)
                    self._written += count
                    part = part[count:]
            except OSError as error:
                self._go_on_in_memory(part, error)

    def _go_on_in_memory(self, part: memoryview, error: OSError) -> Memory:
        """With what is in the file already, and the part that could not be written."""
        from fedq.relay.objects import Memory

        logger.debug("%s goes on in memory: %s", self._path, error)
        self._memory = Memory(self._nbytes)
        os.lseek(self._file, 0, os.SEEK_SET)
        while self._written:
            count = os.readv(self._file, [self._memory.room(self._written)])
            if not count:
                raise error
            self._memory.filled(count)
            self._written -= count
        self._memory.room(len(part))[:] = part
        self._memory.filled(len(part))
        return self._memory

    def verified(self) -> memoryview:
        if self._memory is not None:
            return self._memory.verified()
        try:
            # Only with a directory, whichever, does Python make the call that follows the link.
            os.link(f"/proc/self/fd/{self._file}", self._path, src_dir_fd=self._file, follow_symlinks=True)
        except FileExistsError:
            pass  # another process had the same one
        except OSError as error:
            logger.debug("%s is not kept as it was received: %s", self._path, error)  # and is for `put`
        try:
            # Others see what is written to this file, so that nobody who has the array may be able to.
            return self._cache._map(self._file, self._nbytes)
        except OSError as error:
            return self._go_on_in_memory(memoryview(b""), error).verified()

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
            self._cache._parts.append(self._part)


def _without_a_name(shelf: str) -> int:
    """The descriptor of a file that is in no folder yet, on the file system of ``shelf``."""
    flags = os.O_RDWR | os.O_TMPFILE
    try:
        return os.open(shelf, flags, 0o666)
    except FileNotFoundError:
        os.makedirs(shelf, exist_ok=True)
        return os.open(shelf, flags, 0o666)


def _noted(written: bytes) -> tuple[int, int]:
    """Room and limit as they were written; none, where that was interrupted or somebody else has written there."""
    try:
        room, limit = (int(part) for part in written.split(b"|"))
    except ValueError:
        return 0, 0
    return room, limit
