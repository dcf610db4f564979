"""Replies: what comes back to a set of messages, one by one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING
from weakref import ref

from fedq.apps.message import Message

if TYPE_CHECKING:
    from fedq.apps.grid import Grid


class Replies(Iterable[Message]):
    """The replies to some messages, in the order of their arrival, waiting for each as needed.

    It may be iterated more than once and holds no reply: what an earlier pass has seen is pulled again by its id, then
    the pass goes on with what arrives. An aggregator that looks at each reply once therefore holds one at a time, and
    one that looks twice works as with a list. ``list(replies)`` waits for the end, ``len(replies)`` too; ``bool`` is
    true when any message was sent, and does not wait.
    """

    def __init__(self, grid: Grid, message_ids: Sequence[str], arrivals: Iterator[Message]) -> None:
        self._grid = grid
        self._message_ids = tuple(message_ids)
        self._arrivals = arrivals
        self._seen: list[str] = []  # ids of the messages whose reply has arrived, in that order
        self._errors: set[str] = set()
        self._newest: ref[_Pass] | None = None
        self.restore: Callable[[Message], Message] | None = None
        """What makes of a reply as it travelled the one that is given out; set before any is looked at."""

    @property
    def message_ids(self) -> tuple[str, ...]:
        """Ids of the messages that were sent, in the order of sending."""
        return self._message_ids

    @property
    def arrived(self) -> tuple[str, ...]:
        """Ids of the messages whose reply has been given out so far, in the order of arrival."""
        return tuple(self._seen)

    @property
    def errors(self) -> frozenset[str]:
        """Ids of the messages which were answered by an error so far."""
        return frozenset(self._errors)

    @property
    def unanswered(self) -> tuple[str, ...]:
        """Ids of the messages whose reply has not been given out so far."""
        seen = set(self._seen)
        return tuple(message_id for message_id in self._message_ids if message_id not in seen)

    @property
    def unsent(self) -> int:
        """How many messages were not sent so far: none, but where replies have to keep within a budget."""
        return 0

    def __iter__(self) -> Iterator[Message]:
        newest = _Pass(self)
        self._newest = ref(newest)
        return newest

    def __len__(self) -> int:
        """Wait for the end and return how many replies there are."""
        # list() asks for the length right after it has begun a pass. That pass is about to hold everything anyway, so
        # it gets what arrives now; nobody else does.
        newest = self._newest() if self._newest is not None else None
        keep = newest.ahead if newest is not None and not newest.begun else None
        while (message := self._next()) is not None:
            if keep is not None:
                keep.append(message)
        return len(self._seen)

    def __bool__(self) -> bool:
        return bool(self._message_ids)

    def __repr__(self) -> str:
        return f"<Replies: {len(self._seen)} of {len(self._message_ids)} so far>"

    def _next(self) -> Message | None:
        message = next(self._arrivals, None)
        if message is not None:
            message_id = message.metadata.reply_to_message_id
            self._seen.append(message_id)
            if message.has_error():
                self._errors.add(message_id)
            return self._restored(message)
        return None

    def _restored(self, message: Message) -> Message:
        return message if self.restore is None else self.restore(message)


class _Pass(Iterator[Message]):
    """One pass over the replies: first those that another pass has seen, then what arrives."""

    def __init__(self, replies: Replies) -> None:
        self._replies = replies
        self._place = 0
        self.begun = False
        self.ahead: deque[Message] = deque()

    def __next__(self) -> Message:
        self.begun = True
        replies = self._replies
        while self._place < len(replies._seen):
            message_id = replies._seen[self._place]
            self._place += 1
            if self.ahead and self.ahead[0].metadata.reply_to_message_id == message_id:
                return self.ahead.popleft()
            for message in replies._grid.pull_messages([message_id]):
                return replies._restored(message)
        arrived = replies._next()
        if arrived is None:
            raise StopIteration
        self._place += 1
        return arrived
