"""RQ's commands to a worker (stop a job, shut down), heard without a thread.

RQ listens in a thread; a worker that forks should have none.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from typing import Any

import redis
from redis.exceptions import RedisError
from rq.command import PUBSUB_CHANNEL_TEMPLATE

__all__ = ["Commands", "let_go"]

log = logging.getLogger("fedq.worker")


def let_go(connection: Any) -> None:
    """Close a connection's descriptor without a word to the server.

    For forked children, whose parent goes on using the connection; quicker than redis-py's own way, which tidies a pool
    that the child never uses.
    """
    if connection is not None and connection._sock is not None:
        os.close(connection._sock.detach())
        connection._sock = None


class Commands:
    """The subscription to a worker's channel. A lost one is taken up again by :meth:`open`."""

    def __init__(self, client: redis.Redis, worker_name: str) -> None:
        self._client = client
        self._channel = PUBSUB_CHANNEL_TEMPLATE % worker_name
        self._pubsub: Any = None
        self._left: Any = None
        self._refused = False

    def open(self) -> None:
        """Subscribe, unless subscribed. A server that forbids it is not asked again."""
        if self._pubsub is not None or self._refused:
            return
        pubsub: Any = self._client.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
        try:
            pubsub.subscribe(self._channel)
        except redis.ResponseError as error:
            self._refused = True
            log.warning("commands of RQ (stop a job, shut down) are not heard: %s", error)
            return
        self._pubsub = pubsub

    def fds(self) -> list[int]:
        """The descriptor to wait for, if subscribed."""
        if self._pubsub is None or self._pubsub.connection is None or self._pubsub.connection._sock is None:
            return []
        return [self._pubsub.connection._sock.fileno()]

    def receive(self) -> list[dict[str, Any]]:
        """The commands that have arrived."""
        commands: list[dict[str, Any]] = []
        while self._pubsub is not None:
            try:
                connection = self._pubsub.connection
                if connection is None or not connection.can_read(timeout=0):
                    break
                message = self._pubsub.get_message(timeout=0)
            except (RedisError, OSError):
                self.close()
                break
            if message and message.get("type") == "message":
                with contextlib.suppress(ValueError, UnicodeDecodeError):
                    command = json.loads(message["data"])
                    if isinstance(command, dict):
                        commands.append(command)
        return commands

    def forget(self) -> None:
        """In a forked child: close the descriptor, and leave the subscription to the parent."""
        pubsub, self._pubsub = self._pubsub, None
        if pubsub is not None:
            let_go(pubsub.connection)
            self._left = pubsub  # its end would talk to the server

    def close(self) -> None:
        """End the subscription."""
        pubsub, self._pubsub = self._pubsub, None
        if pubsub is not None:
            with contextlib.suppress(Exception):
                pubsub.close()
