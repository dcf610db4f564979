"""Replies within a budget: only as many messages are out as the server has room for their replies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from fedq.apps.errors import StrategyError
from fedq.apps.grid import JSON, Grid, OnOffline
from fedq.apps.message import Message
from fedq.apps.recorddict import RecordDict
from fedq.apps.replies import Replies

_SHARE = 0.9
"""Of the budget; the rest is for the server's buffers and what its allocator rounds up."""


class Room:
    """How many replies the server has room for.

    Beside the replies it holds, in mid-round, the model that was sent and the partial aggregate, this one twice while a
    checkpoint is written. As far as these are more than four times the model the budget pays for them, so that all
    together is at most the budget and four times the model.

    Args:
        budget: bytes.
        messages: those of the round. A reply is taken to be as large as the largest of them, or as the largest reply
            that came, if that is larger.

    Raises:
        StrategyError: there is no room for a single reply.
    """

    def __init__(self, budget: int, messages: Sequence[Message]) -> None:
        self._budget = budget
        contents = {id(message.content): message.content for message in messages}
        self._model = max(map(array_bytes, contents.values()), default=0)
        # Of the exact sums: eight bytes for a value of up to four, sixteen for one of eight.
        self.aggregate = max(map(_sum_bytes, contents.values()), default=0)
        self.reply = max(1, self._model)
        if self.capacity < self.reply:
            needed = int((self.reply + self._beside) / _SHARE) + 1
            raise StrategyError(
                f"a reply_budget of {budget} bytes has no room for a reply: with a model of {self._model} bytes it "
                f"must be at least {needed}"
            )

    @property
    def _beside(self) -> int:
        return max(0, 2 * self.aggregate - 3 * self._model)

    @property
    def capacity(self) -> float:
        """Bytes of replies that there may be."""
        return _SHARE * self._budget - self._beside

    def left(self, held: int, under_way: int) -> int:
        """How many messages more may go out, with so many bytes of replies there and so many messages under way."""
        if not held and not under_way:
            return max(1, int(self.capacity // self.reply))
        return max(0, int((self.capacity - held - under_way * self.reply) // self.reply))

    def is_due(self, held: int, under_way: int) -> bool:
        """Whether a checkpoint has to make room: where half of it is taken by replies, the nodes need not wait."""
        return held > 0 and (held >= self.capacity / 2 or not under_way)


class WindowedReplies(Replies):
    """The replies to the messages of a round, some of which are sent only when others' replies have been freed.

    When half of the room is taken by replies, and there are messages still to be sent, `save` writes a checkpoint: all
    replies given out so far are in the aggregate then, and are freed. Messages to nodes that are connected go first,
    since one that waits for its node keeps its place. Everything that decides is journaled or in the checkpoint.

    It can be iterated once.

    Args:
        grid: where the messages go.
        messages: all of them.
        room: for how many replies there is room; None: for all.
        save: called with what has to be kept of this object, and the ids of the replies to be freed.
        kept: what `save` was called with, of a round that was interrupted; its `messages` are the same.
        others: as in `Grid.stream`.
    """

    def __init__(
        self,
        grid: Grid,
        messages: Sequence[Message],
        room: Room | None,
        save: Callable[[dict[str, JSON], list[str]], None],
        kept: Mapping[str, Any] | None = None,
        *,
        timeout: float,
        min_replies: int | None = None,
        grace: float = 0.0,
        on_offline: OnOffline = "wait",
    ) -> None:
        super().__init__(grid, (), self._windowed())
        self._room = room
        self._save = save
        self._min_replies = min_replies
        self._grace = grace
        self._on_offline = on_offline
        self._unsent = dict(enumerate(messages))
        self._never_sent = 0
        self._sent: list[tuple[int, str]] = []  # places among the messages, and ids
        self._before: tuple[str, ...] = ()  # freed before the interruption, in the order of arrival
        self._freed: list[str] = []
        self._given: list[str] = []  # and not yet freed
        self._held = 0  # their bytes
        self._good = 0
        self._closing: float | None = None  # when the grace period ends
        grid._tick()
        if kept is None:
            self._deadline = grid._now() + timeout
        else:
            self._go_on(kept)
        freed: frozenset[str] = frozenset(self._before)
        self._under_way = dict.fromkeys(message_id for _, message_id in self._sent if message_id not in freed)

    def _go_on(self, kept: Mapping[str, Any]) -> None:
        now = self._grid._now()
        self._sent = [(place, message_id) for place, message_id in kept["sent"]]
        for place, _ in self._sent:
            del self._unsent[place]
        self._before = tuple(kept["freed"])
        self._errors = set(kept["errors"])
        self._good = kept["good"]
        self._deadline = now + kept["left"]
        self._closing = None if kept["closing"] is None else now + kept["closing"]
        if self._room is not None:
            self._room.reply, self._room.aggregate = kept["reply"], kept["aggregate"]

    @property
    def message_ids(self) -> tuple[str, ...]:
        """Ids of the messages that were sent so far, in the order of sending."""
        return tuple(message_id for _, message_id in self._sent)

    @property
    def arrived(self) -> tuple[str, ...]:
        """Ids of the messages whose reply has been given out so far, in the order of arrival."""
        return (*self._before, *self._seen)

    @property
    def unanswered(self) -> tuple[str, ...]:
        """Ids of the messages that were sent and whose reply has not been given out so far."""
        arrived = set(self.arrived)
        return tuple(message_id for message_id in self.message_ids if message_id not in arrived)

    @property
    def unsent(self) -> int:
        """How many messages were not sent so far."""
        return len(self._unsent) + self._never_sent

    def __bool__(self) -> bool:
        return bool(self._sent or self._unsent)

    def __iter__(self) -> Iterator[Message]:
        if self._freed:
            raise StrategyError("with a reply_budget replies are freed as they are aggregated: go through them once")
        return super().__iter__()

    def _windowed(self) -> Iterator[Message]:
        grid = self._grid
        while True:
            # Whoever asks for the next reply is done with those before.
            if self._unsent and self._room is not None and self._room.is_due(self._held, len(self._under_way)):
                self._free()
            if self._closing is None and self._min_replies is not None and self._good >= self._min_replies:
                self._closing = grid._now() + self._grace
            closed = self._closing is not None and grid._now() >= self._closing
            if not closed:
                self._send_more()
            if closed or not self._under_way:
                break
            end = self._deadline if self._closing is None else min(self._deadline, self._closing)
            arrived = grid._receive(tuple(self._under_way), max(0.0, end - grid._now()))
            if not arrived:
                if grid._now() >= self._deadline:
                    break
                continue
            arrived.reverse()
            while arrived:
                self._note(arrived[-1])
                yield arrived.pop()  # nobody but the caller holds a reply, also while the next one comes
        if self._under_way and self._closing is not None and grid._now() >= self._closing:
            grid.cancel(tuple(self._under_way))
        # They hold the model, and this object outlasts the round.
        self._never_sent, self._unsent = len(self._unsent), {}

    def _note(self, reply: Message) -> None:
        message_id = reply.metadata.reply_to_message_id
        self._under_way.pop(message_id, None)
        self._given.append(message_id)
        if reply.has_error():
            return
        self._good += 1
        nbytes = array_bytes(reply.content)
        self._held += nbytes
        if self._room is not None:
            self._room.reply = max(self._room.reply, nbytes)

    def _free(self) -> None:
        grid, room = self._grid, self._room
        assert room is not None
        now = grid._now()
        given, self._given, self._held = self._given, [], 0
        self._freed += given
        kept: dict[str, JSON] = {
            "sent": self._sent,
            "freed": [*self._before, *self._freed],
            "errors": sorted(self._errors),
            "good": self._good,
            "left": self._deadline - now,
            "closing": None if self._closing is None else self._closing - now,
            "reply": room.reply,
            "aggregate": room.aggregate,
        }
        self._save(kept, given)
        # As one that goes on from here does.
        grid._tick()

    def _send_more(self) -> None:
        if not self._unsent:
            return
        count = len(self._unsent)
        if self._room is not None:
            count = min(count, self._room.left(self._held, len(self._under_way)))
        if not count:
            return
        places = list(self._unsent)
        if count < len(places):
            online = set(self._grid.get_node_ids())
            places.sort(key=lambda place: self._unsent[place].metadata.dst_node_id not in online)
        chosen = places[:count]
        batch = [self._unsent.pop(place) for place in chosen]
        ids = self._grid.push_messages(batch, on_offline=self._on_offline)
        self._sent += zip(chosen, ids, strict=True)
        self._under_way.update(dict.fromkeys(ids))


def array_bytes(content: RecordDict) -> int:
    """Bytes of all arrays."""
    return sum(record.count_bytes() for record in content.array_records.values())


def _sum_bytes(content: RecordDict) -> int:
    total = 0
    for record in content.array_records.values():
        for array in record.values():
            values = array.numpy(copy=False)
            total += values.size * max(8, 2 * values.dtype.itemsize)
    return total
