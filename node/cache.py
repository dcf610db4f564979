"""Arrays that this node has seen, on disk, so that they do not travel again.

One file per array, named by its digest. Any number of processes may share the folder. Nothing here is the only copy of
anything: a file that is missing, short or damaged is a miss.
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

_DIGEST = re.compile(r"[0-9a-f]{64}\Z")


class ObjectCache:
    """Arrays by digest in ``folder``, of at most ``limit`` bytes together; the longest unused go first.

    A limit of 0 switches it off. Errors of the file system are logged once and count as misses.
    """

    def __init__(self, folder: Path | str, limit: int = DEFAULT_LIMIT) -> None:
        self.folder = Path(folder)
        self.limit = limit
        self._complained = False

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

    def put(self, blobs: Mapping[str, bytes | bytearray | memoryview]) -> None:
        """Keep arrays whose digests the caller has verified. Each appears whole or not at all."""
        fresh = False
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
                fresh = True
            except OSError as error:
                self._complain(error)
                self._drop(part)
                return
        if fresh:
            self.trim()

    def trim(self) -> None:
        """Delete the longest unused files until the rest fits. Does nothing while another process is at it."""
        try:
            with open(self.folder / ".lock", "w") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    return
                files = sorted(self._files())
                surplus = sum(size for _, size, _ in files) - self.limit
                for _, size, path in files:
                    if surplus <= 0:
                        break
                    self._drop(path)
                    surplus -= size
        except OSError as error:
            self._complain(error)

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
