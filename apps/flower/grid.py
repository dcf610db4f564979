"""Our Grid as Flower's."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

from fedq.apps.errors import AppError
from fedq.apps.flower.installed import SERVER, empty_run, names
from fedq.apps.flower.node_ids import NodeIds
from fedq.apps.flower.records import (
    Converter,
    error_to_flower,
    make_flower_message,
    type_from_flower,
    type_to_flower,
)
from fedq.apps.grid import Grid
from fedq.apps.message import Message

SLICE = 0.25
"""Seconds that one thread waits for replies before others have their turn, once there are others."""


class Carrier:
    """What the Grid of a Flower app does, in terms of ours. Used by several threads at once: Flower's legacy server
    sends to each client from a thread of its own. While one of them waits for the replies to all messages that anybody
    waits for, the others find theirs."""

    def __init__(self, grid: Grid, ids: NodeIds) -> None:
        self.grid = grid
        self.ids = ids
        self._lock = threading.RLock()
        self._owner = threading.get_ident()
        self._shared = False  # whether more than one thread has used it
        self._wanted: dict[str, int] = {}
        self._arrived: dict[str, Message] = {}
        self._news = threading.Condition()

    def node_ids(self) -> list[int]:
        """The nodes that are connected."""
        self._note_thread()
        with self._lock:
            return self.ids.numbers(self.grid.get_node_ids())

    def push(self, messages: Iterable[Any]) -> list[str]:
        """Send; the ids, in order."""
        self._note_thread()
        batch = list(messages)
        if not batch:
            return []
        convert = Converter()
        with self._lock:
            return self.grid.push_messages([self._outgoing(convert, message) for message in batch])

    def pull(self, message_ids: Iterable[str]) -> list[Any]:
        """The replies that are there."""
        self._note_thread()
        with self._lock:
            return [self._incoming(reply) for reply in self.grid.pull_messages(list(message_ids))]

    def send_and_receive(self, messages: Iterable[Any], timeout: float | None) -> list[Any]:
        """Send, and wait for the replies, for so many seconds at most."""
        ids = self.push(messages)
        if not ids:
            return []
        replies: list[Message]
        if not self._shared:
            with self._lock:
                replies = list(self.grid.stream(message_ids=ids, timeout=timeout))
        else:
            replies = self._wait_among_others(ids, timeout)
        return [self._incoming(reply) for reply in replies]

    def _wait_among_others(self, ids: Sequence[str], timeout: float | None) -> list[Message]:
        found: list[Message] = []
        left = dict.fromkeys(ids)
        with self._news:
            self._wanted.update(dict.fromkeys(ids, 1))
        with self._lock:
            since = self.grid._now()
        while left:
            with self._lock:
                with self._news:
                    found += [self._arrived.pop(m) for m in list(left) if m in self._arrived]
                for reply in found:
                    left.pop(reply.metadata.reply_to_message_id, None)
                if not left or (timeout is not None and self.grid._now() - since >= timeout):
                    break
                with self._news:
                    wanted = tuple(self._wanted)
                for reply in self.grid._receive(wanted, SLICE):
                    with self._news:
                        answered = reply.metadata.reply_to_message_id
                        self._wanted.pop(answered, None)
                        self._arrived[answered] = reply
        with self._news:
            for m in left:
                self._wanted.pop(m, None)
        return found

    def _note_thread(self) -> None:
        if threading.get_ident() != self._owner:
            self._shared = True

    def _outgoing(self, convert: Converter, message: Any) -> Message:
        metadata = message.metadata
        return Message(
            convert.from_flower(message.content),
            self._name(metadata.dst_node_id),
            type_from_flower(metadata.message_type),
            ttl=metadata.ttl,
            group_id=str(metadata.group_id),
        )

    def _name(self, number: int) -> str:
        name = self.ids.name(number)
        if name is None:
            # It may be offline now, or be known from a Context that an earlier attempt left.
            self.ids.numbers(self.grid.get_node_ids(online=False))
            name = self.ids.name(number)
        if name is None:
            raise AppError(
                f"no node of this run has the number {number}; send to those that get_node_ids() gives",
                run_id=self.grid.run_id,
            )
        return name

    def _incoming(self, reply: Message) -> Any:
        got = reply.metadata
        metadata = {
            "run_id": got.run_id,
            "message_id": got.message_id,
            "src_node_id": self.ids.number(got.src_node_id),
            "dst_node_id": SERVER,
            "reply_to_message_id": got.reply_to_message_id,
            "group_id": got.group_id,
            "created_at": got.created_at,
            "ttl": got.ttl,
            "message_type": type_to_flower(got.message_type),
        }
        if reply.has_error():
            return make_flower_message(metadata, error=error_to_flower(reply.error))
        return make_flower_message(metadata, Converter().to_flower(reply.content))


@cache
def _kind() -> Any:
    """The subclass of Flower's Grid. Made when it is needed, since its base is Flower's."""
    base: Any = names("flwr.serverapp").Grid

    class FlowerGrid(base):  # type: ignore[misc]
        """The federation as a Flower app sees it."""

        def __init__(self, carrier: Carrier) -> None:
            self._carrier = carrier
            self._run = empty_run(carrier.grid.run_id)

        @property
        def run(self) -> Any:
            return self._run

        def set_run(self, run: Any) -> None:
            """Nothing: the Grid was made for its run."""

        def create_message(
            self, content: Any, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
        ) -> Any:
            return names("flwr.app").Message(
                content, dst_node_id=dst_node_id, message_type=message_type, group_id=group_id, ttl=ttl
            )

        def get_node_ids(self) -> list[int]:
            return self._carrier.node_ids()

        def push_messages(self, messages: Iterable[Any]) -> list[str]:
            return self._carrier.push(messages)

        def pull_messages(self, message_ids: Iterable[str]) -> list[Any]:
            return self._carrier.pull(message_ids)

        def send_and_receive(self, messages: Iterable[Any], *, timeout: float | None = None) -> list[Any]:
            return self._carrier.send_and_receive(messages, timeout)

    return FlowerGrid


def make_grid(grid: Grid, ids: NodeIds) -> Any:
    """A Grid for a Flower app."""
    return _kind()(Carrier(grid, ids))
