"""The inboxes of virtual nodes, read with one command; and what waits in them.

Unlike :mod:`fedq.node.inbox` this needs no consumer groups: where it has read up to is known to the reader alone, and
whatever it may have missed is found by reading everything anew, as after an outage.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fedq.apps.errors import FedqError
from fedq.node.inbox import READ_BATCH, Lost, Waiting, sort_out
from fedq.node.virtual import in_batches
from fedq.relay.connection import Relay
from fedq.relay.errors import RelayUnavailable
from fedq.relay.pauses import Pauses
from fedq.relay.texts import text

logger = logging.getLogger(__name__)

Place = tuple[int, str]
"""A run and a node: messages are run in turn within it."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """New messages with their nodes, in order; entries that only wake; and jobs that do no more."""

    messages: tuple[tuple[str, Waiting], ...]
    wakes: tuple[tuple[str, str], ...]
    ended: tuple[str, ...] = ()


class InboxesReader(threading.Thread):
    """Reads the inboxes of ``nodes``, and that of ``host`` for what workers say, for ever.

    ``tell`` hears of :class:`Delivered` and :class:`~fedq.node.inbox.Lost`.
    """

    def __init__(self, relay: Relay, host: str, nodes: Sequence[str], tell: Callable[[Delivered | Lost], None]) -> None:
        super().__init__(name="inboxes-reader", daemon=True)
        self._relay = Relay(relay.url, home=relay.home, client_name=f"{relay.client_name}-inbox", retries=0)
        self._host = host
        self._nodes = {relay.keys.inbox(name).encode(): name for name in (*nodes, host)}
        self._cursors: dict[bytes, bytes] = dict.fromkeys(self._nodes, b"0-0")
        self._tell = tell
        self._ended = threading.Event()

    def stop(self) -> None:
        """Read no more: the read under way is cut off."""
        self._ended.set()
        self._relay.close()

    def run(self) -> None:
        pauses = Pauses()
        while not self._ended.is_set():
            try:
                with self._relay.errors():
                    raw: Any = self._relay.redis.xread(
                        self._cursors,  # type: ignore[arg-type]
                        count=READ_BATCH,
                        block=self._relay.block(5000),
                    )
            except Exception as error:
                if self._ended.is_set():
                    break
                if not isinstance(error, FedqError):
                    logger.exception("the inboxes could not be read; trying again")
                # Ids may begin below what was read when another server has taken over.
                self._cursors = dict.fromkeys(self._nodes, b"0-0")
                self._tell(Lost(str(error) or repr(error)))
                self._ended.wait(pauses.next() if isinstance(error, RelayUnavailable) else 1.0)
                continue
            pauses.reset()
            if raw and not self._ended.is_set():
                self._tell(self._deliver(raw))
        self._relay.close()

    def _deliver(self, raw: Iterable[tuple[bytes, Any]]) -> Delivered:
        messages: list[tuple[str, Waiting]] = []
        wakes: list[tuple[str, str]] = []
        ended: list[str] = []
        for stream, entries in raw:
            node = self._nodes[stream]
            self._cursors[stream] = entries[-1][0]
            if node == self._host:
                ended += [text(fields[b"job"]) for _, fields in entries if b"job" in fields]
            found = sort_out(entries)
            messages += [(node, message) for message in found.messages]
            wakes += [(node, entry) for entry in found.wakes]
        return Delivered(tuple(messages), tuple(wakes), tuple(ended))


def read_all(relay: Relay, nodes: Sequence[str]) -> Delivered:
    """Everything that is in the inboxes of ``nodes`` now."""
    messages: list[tuple[str, Waiting]] = []
    wakes: list[tuple[str, str]] = []
    todo = [(name, "-") for name in nodes]
    while todo:
        again = []
        for some in in_batches(todo):
            with relay.errors(), relay.redis.pipeline(transaction=False) as pipe:
                for name, after in some:
                    pipe.xrange(relay.keys.inbox(name), min=after, count=READ_BATCH)
                found = pipe.execute()
            for (name, _), raw in zip(some, found, strict=True):
                sorted_out = sort_out(raw)
                messages += [(name, message) for message in sorted_out.messages]
                wakes += [(name, entry) for entry in sorted_out.wakes]
                if len(raw) == READ_BATCH:
                    again.append((name, f"({text(raw[-1][0])}"))
        todo = again
    return Delivered(tuple(messages), tuple(wakes))


def delete(relay: Relay, wakes: Sequence[tuple[str, str]]) -> None:
    """Take wake-ups out of the inboxes, before looking at what they are about."""
    for some in in_batches(wakes):
        with relay.errors(), relay.redis.pipeline(transaction=False) as pipe:
            for name, entry in some:
                pipe.xdel(relay.keys.inbox(name), entry)
            pipe.execute()


__all__ = ["Delivered", "InboxesReader", "Place", "delete", "read_all"]
