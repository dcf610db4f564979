"""RQ's reliable dequeue as something that can be waited for beside other things."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import redis
from redis.exceptions import RedisError

from fedq.relay.jobs.commands import let_go

__all__ = ["Dequeue"]


class Dequeue:
    """A BLMOVE from a queue to its intermediate queue that is under way.

    The reply is waited for with ``poll``, beside signals, commands and kept processes; nothing interrupts the reading
    of it, so that a job that the server has moved for us is lost by no signal.
    """

    def __init__(self, client: redis.Redis, queue_key: str, intermediate_key: str, block: float) -> None:
        self._client = client
        self._keys = (queue_key, intermediate_key)
        self._block = block
        self._connection: Any = None
        self._given_up = 0.0

    def start(self) -> None:
        """Send the command, unless one is under way."""
        if self._connection is not None:
            return
        pool = self._client.connection_pool
        connection: Any = pool.get_connection()
        try:
            connection.send_command("BLMOVE", *self._keys, "LEFT", "RIGHT", self._block)
        except BaseException:
            connection.disconnect()
            pool.release(connection)
            raise
        self._connection = connection
        self._given_up = time.monotonic() + self._block + 10.0

    def fileno(self) -> int:
        """The descriptor of the reply."""
        return int(self._connection._sock.fileno())

    @property
    def left(self) -> float:
        """Seconds until the server should have answered for certain."""
        return max(0.0, self._given_up - time.monotonic())

    def result(self) -> str | None:
        """Read the reply, which has arrived: a job id, or None if none came in time."""
        connection = self._connection
        try:
            reply: Any = self._client.parse_response(connection, "BLMOVE")  # type: ignore[no-untyped-call]
        except RedisError:
            self.abandon()
            raise
        self._connection = None
        self._client.connection_pool.release(connection)
        return reply.decode() if isinstance(reply, bytes) else reply

    def check(self) -> None:
        """Raise redis.TimeoutError if the server is overdue."""
        if self._connection is not None and self.left <= 0:
            self.abandon()
            raise redis.TimeoutError("the server has not answered a blocking read in time")

    def abandon(self) -> None:
        """Give up the wait.

        A job that the server moves in this very moment stays in the intermediate queue, where reconciliation finds it.
        """
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                connection.disconnect()
            self._client.connection_pool.release(connection)

    def forget(self) -> None:
        """In a forked child: close the descriptor, and leave the wait to the parent."""
        connection, self._connection = self._connection, None
        let_go(connection)

    def cancel(self) -> str | None:
        """Give up the wait, but take what has arrived already."""
        if self._connection is None:
            return None
        from fedq.relay.jobs.processes import poll

        if poll([self.fileno()], 0):
            with contextlib.suppress(RedisError):
                return self.result()
        self.abandon()
        return None
