"""Between a worker and its processes: plain values over a socket, each behind its length, and a pipe that wakes."""

from __future__ import annotations

import os
import socket
import struct
from typing import Any

import msgspec

__all__ = ["Channel", "Wakeup", "pair"]

_HEADER = struct.Struct("!I")
_LIMIT = 64 * 1024 * 1024
_PIECE = 65536


class Channel:
    """One end of a connected pair of sockets, for what msgpack can hold: None, numbers, texts, bytes, lists, dicts.

    :meth:`send` may block until the other end reads; :meth:`receive` never does. A closed other end is seen in
    :attr:`closed`.
    """

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._buffer = bytearray()
        self._ready: list[Any] = []
        self.closed = False

    def fileno(self) -> int:
        """The descriptor to wait for."""
        return self._socket.fileno()

    def send(self, value: Any) -> bool:
        """Send one value; False if the other end is closed."""
        data = msgspec.msgpack.encode(value)
        try:
            self._socket.sendall(_HEADER.pack(len(data)) + data)
        except OSError:
            self.closed = True
            return False
        return True

    def receive(self) -> list[Any]:
        """The values that have arrived completely, without waiting."""
        while not self.closed:
            try:
                piece = self._socket.recv(_PIECE, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError:
                piece = b""
            self._take(piece)
            if len(piece) < _PIECE:  # that was all; what has come since is seen in the descriptor
                break
        return self._complete()

    def _take(self, piece: bytes) -> None:
        self._buffer += piece
        if not piece:
            self.closed = True

    def _complete(self) -> list[Any]:
        """The values of which all bytes are there."""
        values = []
        while len(self._buffer) >= _HEADER.size:
            (length,) = _HEADER.unpack_from(self._buffer)
            if length > _LIMIT:  # not written by us: the app has written to our descriptor
                self.closed = True
                self._buffer.clear()
                break
            if len(self._buffer) < _HEADER.size + length:
                break
            data = bytes(self._buffer[_HEADER.size : _HEADER.size + length])
            del self._buffer[: _HEADER.size + length]
            try:
                values.append(msgspec.msgpack.decode(data))
            except (msgspec.MsgspecError, ValueError):
                self.closed = True
                self._buffer.clear()
                break
        return values

    def receive_one(self) -> Any | None:
        """Wait for one value; None if the other end is closed. For ends that do nothing else."""
        while not self._ready:
            if self.closed:
                return None
            try:
                self._take(self._socket.recv(_PIECE))
            except OSError:
                self.closed = True
            self._ready = self._complete()
        return self._ready.pop(0)

    def close(self) -> None:
        """Close this end."""
        self.closed = True
        self._socket.close()


def pair() -> tuple[Channel, Channel]:
    """Two connected ends."""
    left, right = socket.socketpair()
    return Channel(left), Channel(right)


class Wakeup:
    """A pipe that a signal handler or a thread writes to, to end a wait."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)

    def fileno(self) -> int:
        """The descriptor to wait for."""
        return self._read

    @property
    def write_fd(self) -> int:
        """The descriptor to write to, as for ``signal.set_wakeup_fd``."""
        return self._write

    def wake(self) -> None:
        """End the wait. Safe in signal handlers and threads."""
        try:
            os.write(self._write, b"\0")
        except (BlockingIOError, OSError):  # full: it is awake anyway
            pass

    def drain(self) -> bytes:
        """What was written since."""
        try:
            return os.read(self._read, 4096)
        except BlockingIOError:
            return b""

    def close(self) -> None:
        """Close both ends."""
        for fd in (self._read, self._write):
            try:
                os.close(fd)
            except OSError:
                pass
