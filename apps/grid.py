"""Grid: the ServerApp's hold on the federation."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias, Union

from fedq.apps.errors import TooFewNodes
from fedq.apps.message import Message
from fedq.apps.recorddict import RecordDict
from fedq.apps.replies import Replies

if TYPE_CHECKING:
    from fedq.apps.context import Context
    from fedq.apps.strategy.result import Result

OnOffline: TypeAlias = Literal["wait", "fail"]
"""What becomes of a message to a node that is offline: it waits until its TTL, or is answered by an error at once."""

JSON: TypeAlias = Union[bool, int, float, str, Sequence["JSON"], Mapping[str, "JSON"], None]  # noqa: UP007
"""What an event may hold."""


class Grid(ABC):
    """The federation as a ServerApp sees it: who is there, messages out, replies in.

    A runtime implements the abstract methods; the waiting is expressed by them. Node ids are node names.
    Time-outs are seconds.
    """

    strategy_starts: int = 0
    """How many strategies this ServerApp has started; it tells their checkpoints apart."""

    keeps_replies: bool = False
    """Set by what saves as it goes on, however often it pushes in between: all replies are kept until it has saved."""

    # ------------------------------------------------------------------ what a runtime implements

    @property
    @abstractmethod
    def run_id(self) -> int:
        """The run this Grid serves."""

    @property
    @abstractmethod
    def context(self) -> Context | None:
        """The ServerApp's Context, which strategies keep their checkpoints in; None where nothing can be kept."""

    @abstractmethod
    def get_node_ids(self, *, online: bool | None = None) -> list[str]:
        """Names of the run's nodes, sorted.

        Args:
            online: True or None: those that are connected now. False: also those that are known but offline.
        """

    @abstractmethod
    def push_messages(self, messages: Iterable[Message], *, on_offline: OnOffline = "wait") -> list[str]:
        """Send messages and return their ids, in order. Does not wait.

        All or nothing: when it raises, nothing was sent. An unknown node is an error; one that is offline is a
        matter of `on_offline`.
        """

    @abstractmethod
    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies to these messages that are there now. Never waits; may be called again for the same ids."""

    @abstractmethod
    def cancel(self, message_ids: Iterable[str]) -> None:
        """Answer those that have no reply yet by an error (`ErrorCode.CANCELLED`); nodes drop or stop them."""

    @abstractmethod
    def emit(self, kind: str, data: Mapping[str, JSON]) -> None:
        """Add a live event to the run. Whoever follows the run sees it at once, and only once."""

    @abstractmethod
    def publish(self, result: Result) -> None:
        """Make this the run's result. The last call wins."""

    @abstractmethod
    def _receive(self, message_ids: Sequence[str], timeout: float | None) -> list[Message]:
        """Wait until at least one of these messages has a reply and return those that have one.

        Replies come in the order of arrival. An empty list means that `timeout` seconds have passed.
        """

    @abstractmethod
    def _wait_for_change(self, timeout: float) -> None:
        """Wait until the nodes that are connected may have changed, `timeout` seconds at most."""

    def _note(self, kind: str, data: Mapping[str, JSON]) -> None:
        """Add an event that is not the app's doing, so that it need not come again when the app is run again."""
        self.emit(kind, data)

    def _now(self) -> float:
        """Seconds on a clock that never goes back."""
        return time.monotonic()

    def _tick(self) -> None:  # noqa: B027 - for those whose clock does
        """Look at the clock, where it stands still between calls."""

    # ------------------------------------------------------------------ what follows from it

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: str, group_id: str, ttl: float | None = None
    ) -> Message:
        """Create a message of this run, as ``Message(content, dst_node_id, message_type, ...)`` does."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def stream(
        self,
        messages: Iterable[Message] | None = None,
        *,
        message_ids: Iterable[str] | None = None,
        timeout: float | None = None,
        min_replies: int | None = None,
        grace: float = 0.0,
        on_offline: OnOffline = "wait",
    ) -> Replies:
        """Send messages, or name ones sent earlier, and give their replies one by one as they arrive.

        The messages are on their way when this returns. The replies end when all are there, or `timeout` seconds after
        this call (a message stays valid until its TTL), or `grace` seconds after the `min_replies`-th reply that is no
        error: then what is outstanding is cancelled.

        Error replies are among the replies; see `Message.has_error`.
        """
        if (messages is None) == (message_ids is None):
            raise ValueError("give either messages or message_ids")
        if min_replies is not None and min_replies < 1:
            raise ValueError(f"min_replies must be at least 1, not {min_replies}")
        if grace < 0.0:
            raise ValueError(f"grace must not be negative, got {grace}")
        if messages is not None:
            ids = self.push_messages(messages, on_offline=on_offline)
        else:
            ids = list(dict.fromkeys(message_ids or ()))
        deadline = None if timeout is None else self._now() + timeout
        return Replies(self, ids, self._arrivals(ids, deadline, min_replies, grace))

    def send_and_receive(
        self,
        messages: Iterable[Message],
        *,
        timeout: float | None = None,
        min_replies: int | None = None,
        grace: float = 0.0,
        on_offline: OnOffline = "wait",
    ) -> list[Message]:
        """Send messages and wait for their replies, as `stream` does, and return them in order of arrival."""
        return list(self.stream(messages, timeout=timeout, min_replies=min_replies, grace=grace, on_offline=on_offline))

    def wait_for_nodes(self, minimum: int, *, timeout: float | None = None) -> list[str]:
        """Wait until at least `minimum` nodes are connected and return their names, sorted.

        Emits an event ``waiting-for-nodes`` with ``{"connected": 3, "wanted": 5, "text": "3 of 5 nodes"}`` whenever
        the number has changed.

        Raises:
            TooFewNodes: after `timeout` seconds.
        """
        deadline = None if timeout is None else self._now() + timeout
        seen: int | None = None
        while len(nodes := self.get_node_ids()) < minimum:
            text = f"{len(nodes)} of {minimum} nodes"
            if seen != len(nodes):
                seen = len(nodes)
                self._note("waiting-for-nodes", {"connected": seen, "wanted": minimum, "text": text})
            left = _LONG if deadline is None else deadline - self._now()
            if left <= 0.0:
                raise TooFewNodes(
                    f"{text} connected after {timeout:g} s; start more SuperNodes, widen the run's node selector, "
                    "or lower the minimum that the ServerApp asks for",
                    run_id=self.run_id,
                )
            self._wait_for_change(min(left, _LONG))
        return nodes

    def _arrivals(
        self, ids: Sequence[str], deadline: float | None, min_replies: int | None, grace: float
    ) -> Iterator[Message]:
        outstanding = dict.fromkeys(ids)
        good = 0
        closing: float | None = None  # when the grace period ends
        while outstanding:
            if closing is None and min_replies is not None and good >= min_replies:
                closing = self._now() + grace
            if closing is not None and self._now() >= closing:
                break
            ends = [end for end in (deadline, closing) if end is not None]
            left = max(0.0, min(ends) - self._now()) if ends else None
            arrived = self._receive(tuple(outstanding), left)
            if not arrived:
                if left is not None and self._now() >= min(ends):
                    break
                continue
            arrived.reverse()
            while arrived:
                outstanding.pop(arrived[-1].metadata.reply_to_message_id, None)
                good += not arrived[-1].has_error()
                yield arrived.pop()  # nobody but the caller holds a reply, also while the next one comes
        if outstanding and closing is not None and self._now() >= closing:
            self.cancel(tuple(outstanding))


_LONG = 3600.0
