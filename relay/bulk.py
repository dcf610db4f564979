"""Values of many MiB between memory and socket, without copies in between.

redis-py copies each value twice on either way, into memory that the kernel must hand out page by page; for large arrays
that takes longer than the transfer. Here a value is sent from where it lies and received to where the caller wants each
part of it, over a connection of redis-py's pool, which opens it, approves it and takes it back.

That takes two things of the connection which redis-py does not promise to keep: its socket, and how its parser makes
an error of an answer. Where they are not as known here, `directly` is False, and values go by redis-py's commands: the
same bytes, more slowly.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from typing import Any, TypeVar

import redis
from redis import exceptions

T = TypeVar("T")

log = logging.getLogger(__name__)

HEAD = 64
"""Bytes read to learn what an answer is; a few of them may be the value's first."""

NOTHING = (b"$-1", b"_")
"""No value, in RESP2 and in RESP3."""


class Line:
    """A connection on which values pass by redis-py's parser. Answers are read in the order of the requests."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._socket: socket.socket = connection._sock
        self._rest = b""  # received, and not yet used

    def send(self, *parts: bytes | memoryview) -> None:
        """Send what :func:`command` made."""
        self._connection.send_packed_command(parts, check_health=False)

    def read_length(self) -> int | None:
        """The length of the value that comes next, of which the bytes are then to be read; None if there is none."""
        line = self._line()
        if line in NOTHING:
            return None
        if line[:1] == b"$":
            return int(line[1:])
        raise self._unexpected(line)

    def read_value(self) -> bytes | None:
        """A small value, all of it."""
        length = self.read_length()
        if length is None:
            return None
        value = memoryview(bytearray(length))
        self.receive(length, lambda left: value[length - left :])
        return bytes(value)

    def read_statuses(self, count: int) -> None:
        """So many answers without a value. Raises redis-py's error for the first that is a refusal."""
        for _ in range(count):
            line = self._line()
            if line[:1] not in (b"+", b":") and line not in NOTHING:
                raise self._unexpected(line)

    def receive(
        self,
        length: int,
        room: Callable[[int], memoryview],
        received: Callable[[memoryview], object] = lambda part: None,
    ) -> None:
        """The bytes of a value, all of them: each part to where ``room`` says, which is told how many are left, and
        ``received`` sees it there, while it is in the processor's cache.
        """
        left = length
        while left:
            target = room(left)
            if self._rest:
                got = min(len(self._rest), len(target))
                target[:got], self._rest = self._rest[:got], self._rest[got:]
            else:
                got = self._received(self._socket.recv_into, target)
            received(target[:got])
            left -= got
        self._end()

    def _end(self) -> None:
        while len(self._rest) < 2:
            self._rest += self._more()
        if self._rest[:2] != b"\r\n":
            raise exceptions.ConnectionError("the server's answer is longer than it said")
        self._rest = self._rest[2:]

    def _line(self) -> bytes:
        while b"\r\n" not in self._rest:
            self._rest += self._more()
        line, _, self._rest = self._rest.partition(b"\r\n")
        return line

    def _more(self) -> bytes:
        more: bytes = self._received(self._socket.recv, HEAD)
        return more

    @staticmethod
    def _received(receive: Callable[[Any], Any], argument: Any) -> Any:
        try:
            got = receive(argument)
        except TimeoutError as error:
            raise exceptions.TimeoutError("Timeout reading from socket") from error
        except OSError as error:
            raise exceptions.ConnectionError(f"Error while reading from socket: {error}") from error
        if not got:
            raise exceptions.ConnectionError("Connection closed by server.")
        return got

    def _unexpected(self, line: bytes) -> Exception:
        text = line.decode(errors="replace")
        if line[:1] != b"-":
            return exceptions.ConnectionError(f"the server answered {text[:40]!r} to a request for a value")
        error: Exception = self._connection._parser.parse_error(text[1:])
        return error


def command(*words: bytes | str | int | memoryview) -> list[bytes | memoryview]:
    """A command as it goes over the wire. Views are not copied."""
    parts: list[bytes | memoryview] = []
    head = b"*%d\r\n" % len(words)
    for word in words:
        if isinstance(word, memoryview):
            parts += [head + b"$%d\r\n" % word.nbytes, word]
            head = b"\r\n"
            continue
        data = word if isinstance(word, bytes) else str(word).encode()
        head += b"$%d\r\n%s\r\n" % (len(data), data)
    return [*parts, head]


def directly(client: redis.Redis, action: Callable[[Line], object]) -> bool:
    """Do ``action`` on a line of the client; again, as redis-py does with a command, where the connection was lost.

    Whatever else ends it half-way closes the connection, so that no answer is left over for the next. False: the client
    has no lines, and nothing was done.
    """
    pool = client.connection_pool
    if not str(pool.connection_class.__module__).startswith("redis."):
        return False  # of a simulated server
    connection: Any = pool.get_connection()

    def attempt() -> None:
        if connection._sock is None:
            connection.connect()
        action(Line(connection))

    try:
        if not _is_known(connection):
            return False
        connection.retry.call_with_retry(attempt, lambda _: connection.disconnect())
        return True
    except BaseException:
        connection.disconnect()
        raise
    finally:
        pool.release(connection)


def _is_known(connection: Any) -> bool:
    """Whether a connected connection has what a line takes of it."""
    parser = getattr(connection, "_parser", None)
    known = isinstance(getattr(connection, "_sock", None), socket.socket) and all(
        callable(getattr(owner, name, None))
        for owner, name in (
            (parser, "parse_error"),
            (connection, "send_packed_command"),
            (getattr(connection, "retry", None), "call_with_retry"),
        )
    )
    if not known:
        log.debug("large arrays go by commands: redis-py %s has other connections than known here", redis.__version__)
    return known
