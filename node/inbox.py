"""The inbox of a node: drained by a thread, kept as the messages that wait, run by run.

The reader never stops reading, also when every slot is busy, so that a wake-up or a new run is seen at once. What waits
is a view of the server's state: after an outage it is read anew.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from redis.exceptions import OutOfMemoryError, ResponseError

from fedq.apps.errors import FedqError
from fedq.relay.connection import Relay
from fedq.relay.errors import RelayError, RelayUnavailable
from fedq.relay.keys import GROUP
from fedq.relay.messages import Instruction, parse_entry
from fedq.relay.pauses import Pauses
from fedq.relay.texts import text

logger = logging.getLogger(__name__)

CONSUMER = "dispatcher"
READ_BATCH = 200


@dataclass(frozen=True, slots=True)
class Waiting:
    """An unanswered message, without its content."""

    entry: str
    message_id: str
    run: int
    seq: int
    type: str
    group: str
    deadline: float
    nbytes: int

    @classmethod
    def of(cls, i: Instruction) -> Waiting:
        """What is kept of an instruction."""
        return cls(i.entry, i.message_id, i.run, i.seq, i.type, i.group, i.deadline, i.nbytes)


@dataclass(frozen=True, slots=True)
class Arrived:
    """New messages, in order, and the entries that only wake."""

    messages: tuple[Waiting, ...]
    wakes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Lost:
    """The reader lost its connection (or the inbox): what is known may be out of date."""

    reason: str


def ensure_group(relay: Relay, node: str) -> None:
    """Make the inbox and its group, if they are not there. Idempotent."""
    inbox = relay.keys.inbox(node)
    with relay.errors():
        try:
            relay.redis.xgroup_create(inbox, GROUP, id="0", mkstream=True)
        except OutOfMemoryError:
            # A full server refuses this even where there is nothing to do; replies have to drain all the same.
            if not relay.redis.exists(inbox) or not relay.redis.xinfo_groups(inbox):
                raise
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise


def sort_out(entries: Iterable[tuple[bytes, Any]]) -> Arrived:
    """Entries as the server gives them. One that cannot be read is named in the log and skipped."""
    messages, wakes = [], []
    for entry, fields in entries:
        try:
            instruction = parse_entry(entry, fields)
        except (KeyError, ValueError, UnicodeDecodeError) as error:
            logger.error("the inbox entry %s cannot be read (%r); it is left alone", text(entry), error)
            continue
        if instruction.kind == "message":
            messages.append(Waiting.of(instruction))
        else:
            wakes.append(instruction.entry)
    return Arrived(tuple(messages), tuple(wakes))


class InboxReader(threading.Thread):
    """Reads the inbox for ever and hands on what comes.

    ``tell`` hears of :class:`Arrived` and :class:`Lost`. The connection does not retry by itself: entries whose answer
    got lost count as delivered, and only reading everything anew finds them.
    """

    def __init__(self, relay: Relay, node: str, tell: Callable[[Arrived | Lost], None]) -> None:
        super().__init__(name="inbox-reader", daemon=True)
        self._relay = Relay(relay.url, home=relay.home, client_name=f"{relay.client_name}-inbox", retries=0)
        self._node = node
        self._tell = tell
        self._ended = threading.Event()

    def stop(self) -> None:
        """Read no more: the read under way is cut off."""
        self._ended.set()
        self._relay.close()

    def run(self) -> None:
        inbox = self._relay.keys.inbox(self._node)
        pauses = Pauses()
        while not self._ended.is_set():
            try:
                raw: Any = self._read(inbox)
            except FedqError as error:
                if self._ended.is_set():
                    return
                self._tell(Lost(str(error)))
                self._ended.wait(pauses.next() if isinstance(error, RelayUnavailable) else 1.0)
                continue
            except Exception as error:  # without a reader the node would be deaf
                if not self._ended.is_set():
                    logger.exception("the inbox could not be read; trying again")
                    self._tell(Lost(repr(error)))
                    self._ended.wait(1.0)
                continue
            pauses.reset()
            if raw and not self._ended.is_set():
                self._tell(sort_out(raw[0][1]))
        self._relay.close()

    def _read(self, inbox: str) -> Any:
        try:
            with self._relay.errors():
                return self._relay.redis.xreadgroup(
                    GROUP, CONSUMER, {inbox: ">"}, count=READ_BATCH, block=self._relay.block(5000)
                )
        except RelayError as error:
            if "NOGROUP" not in str(error) or self._ended.is_set():
                raise
            ensure_group(self._relay, self._node)
            raise RelayUnavailable("the inbox was gone; it has been made again") from error


class Backlog:
    """What waits at the node, run by run, each in the order of its sequence numbers."""

    def __init__(self, relay: Relay, node: str) -> None:
        self._relay = relay
        self._node = node
        self._runs: dict[int, dict[str, Waiting]] = {}

    def __len__(self) -> int:
        return sum(len(messages) for messages in self._runs.values())

    def __contains__(self, message_id: object) -> bool:
        return any(message_id in messages for messages in self._runs.values())

    @property
    def runs(self) -> list[int]:
        """The runs that have something waiting here."""
        return list(self._runs)

    def add(self, messages: Iterable[Waiting]) -> None:
        """New messages; known ones change nothing."""
        for message in messages:
            self._runs.setdefault(message.run, {}).setdefault(message.message_id, message)

    def head(self, run: int) -> Waiting | None:
        """The run's lowest message, as far as is known."""
        messages = self._runs.get(run)
        return min(messages.values(), key=lambda m: m.seq) if messages else None

    def drop_run(self, run: int) -> None:
        """Forget a run that is over."""
        self._runs.pop(run, None)

    def read_anew(self) -> None:
        """Everything that is in the inbox now, in place of what was known. Wake-ups are deleted."""
        inbox = self._relay.keys.inbox(self._node)
        runs: dict[int, dict[str, Waiting]] = {}
        wakes: list[str] = []
        after = "-"
        while True:
            with self._relay.errors():
                raw: Any = self._relay.redis.xrange(inbox, min=after, count=READ_BATCH)
            found = sort_out(raw)
            for message in found.messages:
                runs.setdefault(message.run, {})[message.message_id] = message
            wakes += found.wakes
            if len(raw) < READ_BATCH:
                break
            after = f"({text(raw[-1][0])}"
        self.delete(wakes)
        self._runs = runs

    def delete(self, entries: Iterable[str]) -> None:
        """Take wake-ups out of the inbox, before looking at what they are about."""
        ids = list(entries)
        if ids:
            inbox = self._relay.keys.inbox(self._node)
            with self._relay.errors(), self._relay.redis.pipeline(transaction=False) as pipe:
                pipe.xack(inbox, GROUP, *ids)
                pipe.xdel(inbox, *ids)
                pipe.execute()

    def refresh(self) -> bool:
        """Forget what has been answered meanwhile: one round trip, whatever waits.

        False if the server knows a message that is not known here, so that everything should be read anew.
        """
        runs = list(self._runs)
        if not runs:
            return True
        with self._relay.errors(), self._relay.redis.pipeline(transaction=False) as pipe:
            for run in runs:
                pipe.zrange(self._relay.keys.order(self._node, run), 0, 0)
            heads = pipe.execute()
        complete = True
        for run, found in zip(runs, heads, strict=True):
            if not found:
                self._runs.pop(run)
                continue
            messages = self._runs[run]
            head = messages.get(text(found[0]))
            if head is None:
                complete = False
            elif next(iter(messages.values())) is not head:
                self._runs[run] = {m.message_id: m for m in messages.values() if m.seq >= head.seq}
        return complete
