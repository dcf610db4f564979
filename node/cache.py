"""Arrays that this node has seen, on disk, so that they do not travel again.

One file per array, named by its digest. Any number of processes may share the folder. Nothing here is the only copy of
anything: a file that is missing, short or damaged is a miss.

An array from the server is received straight into the memory of its file. That takes less than half of the processor
time of receiving it and writing it to a file afterwards.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import mmap
import os
import re
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path

from fedq.apps.digest import digest_of

logger = logging.getLogger(__name__)

DEFAULT_LIMIT = 2 * 1024**3
"""Bytes on disk that the cache of a node may take."""

SHARE = 16
"""One part in so many of the limit may come before the files are listed again."""

_DIGEST = re.compile(r"[0-9a-f]{64}\Z")

_NAMELESS = hasattr(os, "O_TMPFILE") and hasattr(os, "posix_fallocate")
"""Whether this system has files without a name, which may get one later."""


class ObjectCache:
    """Arrays by digest in ``folder``, of at most ``limit`` bytes together; the longest unused go first.

    A limit of 0 switches it off. Errors of the file system are logged once and count as misses. Listing the files takes
    longer than adding one, so that some room is made in advance, and `trim` waits until that is used up.
    """

    def __init__(self, folder: Path | str, limit: int = DEFAULT_LIMIT) -> None:
        self.folder = Path(folder)
        self.limit = limit
        self._complained = False
        self._added = 0

    def get(self, digest: str, nbytes: int | None = None) -> memoryview | None:
        """The bytes of ``digest`` as a read-only view of the file, verified against the digest; None on a miss."""
        if self.limit <= 0 or not _DIGEST.match(digest):
            return None
        path = self._path(digest)
        try:
            with open(path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size == 0 or (nbytes is not None and size != nbytes):
                    raise ValueError("wrong size")
                view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            self._complain(error)
            self._drop(path)
            return None
        if digest_of(view) != digest:
            view.release()
            self._drop(path)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return view

    def get_many(self, digests: Mapping[str, int]) -> dict[str, memoryview]:
        """What is there of ``digests`` (digest -> bytes)."""
        found = ((digest, self.get(digest, nbytes)) for digest, nbytes in digests.items())
        return {digest: view for digest, view in found if view is not None}

    def place(self, digest: str, nbytes: int) -> _Place | None:
        """A file of ``nbytes`` to receive an array into (:class:`fedq.relay.objects.Place`), which appears under its
        digest once it is verified. None where that cannot be: the array is then for `put`.

        Until then the file has no name, so that nothing is left of it if the process is killed.
        """
        if not 0 < nbytes <= self.limit or not _DIGEST.match(digest) or not _NAMELESS:
            return None
        path = self._path(digest)
        try:
            try:
                file = os.open(path.parent, os.O_RDWR | os.O_TMPFILE, 0o600)
            except FileNotFoundError:
                path.parent.mkdir(parents=True, exist_ok=True)
                file = os.open(path.parent, os.O_RDWR | os.O_TMPFILE, 0o600)
            try:
                # The room is there, or it is refused here: a full disk would kill whoever wrote to the memory.
                os.posix_fallocate(file, 0, nbytes)
                return _Place(self, path, file, mmap.mmap(file, nbytes))
            except BaseException:
                os.close(file)
                raise
        except OSError as error:
            logger.debug("an array is received in memory instead of the cache in %s: %s", self.folder, error)
            return None

    def put(self, blobs: Mapping[str, bytes | bytearray | memoryview]) -> None:
        """Keep arrays whose digests the caller has verified. Each appears whole or not at all. Then `trim`."""
        for digest, blob in blobs.items():
            view = memoryview(blob)
            if not _DIGEST.match(digest) or view.nbytes == 0 or view.nbytes > self.limit:
                continue
            path = self._path(digest)
            if path.exists():
                continue
            part = path.with_name(f".{secrets.token_hex(8)}.part")
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with open(part, "xb") as file:
                    file.write(view)
                os.replace(part, path)
                self._added += view.nbytes
            except OSError as error:
                self._complain(error)
                self._drop(part)
                return
        self.trim()

    def trim(self) -> None:
        """Delete the longest unused files until the rest fits, if enough was added for that. Does nothing while another
        process is at it.
        """
        if not self._added:
            return
        try:
            with open(self.folder / ".lock", "a+b") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    return
                lock.seek(0)
                room = min(_number(lock.read(20)), self.limit // SHARE) - self._added
                self._added = 0
                if room < 0:
                    room = self._trimmed()
                lock.truncate(0)
                lock.write(b"%d" % room)
        except OSError as error:
            self._complain(error)

    def _trimmed(self) -> int:
        """Bytes that may be added until it is to be done again."""
        files = sorted(self._files())
        total = sum(size for _, size, _ in files)
        if total > self.limit:
            for _, size, path in files:
                if total <= self.limit - self.limit // SHARE:
                    break
                self._drop(path)
                total -= size
        return min(self.limit - total, self.limit // SHARE)

    def _files(self) -> Iterable[tuple[float, int, Path]]:
        for shelf in self.folder.iterdir():
            if shelf.is_dir():
                for entry in os.scandir(shelf):
                    with contextlib.suppress(OSError):
                        status = entry.stat()
                        yield status.st_mtime, status.st_size, Path(entry.path)

    def _path(self, digest: str) -> Path:
        return self.folder / digest[:2] / digest

    def _drop(self, path: Path) -> None:
        with contextlib.suppress(OSError):
            path.unlink()

    def _complain(self, error: Exception) -> None:
        if not self._complained:
            self._complained = True
            logger.warning("the array cache in %s is not used: %s", self.folder, error)


class _Place:
    """The memory of a file without a name, and the name that it is to get."""

    def __init__(self, cache: ObjectCache, path: Path, file: int, pages: mmap.mmap) -> None:
        self._cache = cache
        self._path = path
        self._file = file
        self.memory = memoryview(pages)

    def verified(self) -> memoryview:
        try:
            # Only with a directory, whichever, does Python make the call that follows the link.
            os.link(f"/proc/self/fd/{self._file}", self._path, src_dir_fd=self._file, follow_symlinks=True)
            self._cache._added += self.memory.nbytes
        except FileExistsError:
            pass  # another process had the same one
        except OSError as error:
            self._cache._complain(error)
        return self.memory.toreadonly()

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _number(written: bytes) -> int:
    """What `trim` wrote; nothing, where it was interrupted or somebody else has written there."""
    try:
        return int(written)
    except ValueError:
        return 0
