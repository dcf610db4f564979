"""The Grid of the federation in a process: replies come into being while the ServerApp waits for them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import fedq.apps.wire as wire
from fedq.apps.context import Context
from fedq.apps.error import Error, ErrorCode
from fedq.apps.errors import AppError
from fedq.apps.grid import JSON, Grid, OnOffline
from fedq.apps.message import Message, make_message
from fedq.apps.recorddict import RecordDict
from fedq.apps.strategy.result import Result
from fedq.apps.testing.node import Delivery, Node
from fedq.apps.testing.run import FederationRun, FederationStuck, cancelled


class FederationGrid(Grid):
    """What the ServerApp of a `FederationRun` holds. Time is that of the federation's clock.

    Message ids are a function of run, checkpoint, number of the push, place and node, as in a deployment: a ServerApp
    that is started again finds what it sent before, and the answers.
    """

    def __init__(self, run: FederationRun, context: Context) -> None:
        self._run = run
        self._federation = run.federation
        self._clock = run.federation.clock
        self._context = context
        self._counted = run.checkpoint
        self._pushes = 0
        self._emitted = 0
        self._without_limit = False

    @property
    def run_id(self) -> int:
        return self._run.run_id

    @property
    def context(self) -> Context | None:
        return self._context

    def get_node_ids(self, *, online: bool | None = None) -> list[str]:
        return sorted(node.name for node in self._federation.nodes.values() if node.online or online is False)

    def push_messages(self, messages: Iterable[Message], *, on_offline: OnOffline = "wait") -> list[str]:
        self._recount()
        push = self._pushes
        prepared: list[tuple[Node, Message]] = []
        encoded: dict[int, tuple[RecordDict, bytes]] = {}  # a content that goes to many nodes is encoded once
        for place, message in enumerate(messages):
            prepared.append(self._prepared(message, push, place, encoded))
        self._pushes += 1
        for node, message in prepared:
            message_id = message.metadata.message_id
            if message_id in self._run.sent:
                continue
            number = len(self._run.sent)
            self._run.sent[message_id] = node.name
            self._run.asked[message_id] = message
            if on_offline == "fail" and not node.online:
                self._run.answer(message_id, _unavailable(node.name))
                continue
            node.deliver(message, number, self._clock.now, on_offline)
        return [message.metadata.message_id for _, message in prepared]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        run, ids = self._run, list(dict.fromkeys(message_ids))
        replies = [reply for mid in ids if (reply := run.reply(mid)) is not None]
        before = len(run.pulled)
        run.pulled.update(dict.fromkeys(reply.metadata.reply_to_message_id for reply in replies))
        if len(run.pulled) == before and any(mid in run.sent and mid not in run.arrived for mid in ids):
            # Whoever asks again and again would do so for ever on a clock that stands still.
            self._clock.advance_to(self._following())
            self._let_one_answer()
        return replies

    def cancel(self, message_ids: Iterable[str]) -> None:
        for message_id in message_ids:
            node = self._federation.nodes.get(self._run.sent.get(message_id, ""))
            if node is not None and message_id not in self._run.arrived:
                node.queue = type(node.queue)(d for d in node.queue if d.message.metadata.message_id != message_id)
                self._run.answer(message_id, cancelled(message_id))

    def emit(self, kind: str, data: Mapping[str, JSON]) -> None:
        self._recount()
        self._run.emit(self._emitted, kind, data)
        self._emitted += 1

    def _note(self, kind: str, data: Mapping[str, JSON]) -> None:
        self._run.note(kind, data)

    def publish(self, result: Result) -> None:
        self._run.published = result

    def wait_for_nodes(self, minimum: int, *, timeout: float | None = None) -> list[str]:
        self._without_limit = timeout is None
        return super().wait_for_nodes(minimum, timeout=timeout)

    def _receive(self, message_ids: Sequence[str], timeout: float | None) -> list[Message]:
        run, clock = self._run, self._clock
        for message_id in message_ids:
            if message_id not in run.sent or message_id in run.folded:
                what = "is not of this run" if message_id not in run.sent else "went into a checkpoint already"
                raise AppError(f"no reply will come to message {message_id!r}: it {what}", run_id=self.run_id)
        # As in a deployment: what the app has had already, and wants again, comes first, in the order in which it came.
        wanted = set(message_ids)
        if (again := next((mid for mid in run.pulled if mid in wanted), None)) is not None:
            return self.pull_messages([again])
        deadline = None if timeout is None else clock.now + timeout
        while True:
            self._answer_what_is_lost()
            if ready := sorted((mid for mid in message_ids if mid in run.arrived), key=run.arrived.__getitem__):
                return self.pull_messages(ready[:1])
            following = self._following()
            if deadline is not None and following > deadline:
                clock.advance_to(deadline)
                return []
            clock.advance_to(following)
            self._let_one_answer()

    def _wait_for_change(self, timeout: float) -> None:
        planned = self._clock.next_action
        if planned is None and self._without_limit:
            raise FederationStuck(
                f"the ServerApp waits without limit for more nodes than the {len(self.get_node_ids())} that are "
                "connected: give the federation more, connect them, or plan it with Federation.at",
                run_id=self.run_id,
            )
        until = self._clock.now + timeout
        self._clock.advance_to(until if planned is None else min(planned, until))

    def _now(self) -> float:
        return self._clock.now

    def _following(self) -> float:
        """When the next thing happens while a message is under way. Each has a TTL, hence something always does."""
        return min(time for time in (self._next_time(), self._clock.next_action) if time is not None)

    def _next_time(self) -> float | None:
        """When the next thing happens to a message: a node answers, or its TTL ends."""
        times = [delivery.due for _, delivery in self._heads()]
        times += [delivery.expires for node in self._federation.nodes.values() for delivery in node.queue]
        return min(times, default=None)

    def _heads(self) -> list[tuple[Node, Delivery]]:
        nodes = self._federation.nodes.values()
        return [(node, delivery) for node in nodes if (delivery := node.next_delivery) is not None]

    def _answer_what_is_lost(self) -> None:
        """Answer by errors what has expired, and what was to fail with a node that is offline."""
        now = self._clock.now
        for node in self._federation.nodes.values():
            for delivery in list(node.queue):
                in_time = delivery is node.next_delivery and delivery.due <= delivery.expires
                if delivery.expires <= now and not in_time:
                    error = _expired(delivery)
                elif delivery.on_offline == "fail" and not node.online:
                    error = _unavailable(node.name)
                else:
                    continue
                node.queue.remove(delivery)
                self._run_of(delivery).answer(delivery.message.metadata.message_id, error)

    def _let_one_answer(self) -> None:
        """Let the node whose answer is due work, if there is one."""
        self._answer_what_is_lost()
        now = self._clock.now
        due = [(delivery.due, delivery.number, node) for node, delivery in self._heads() if delivery.due <= now]
        if not due:
            return
        _, _, node = min(due, key=lambda item: item[:2])
        delivery = node.queue.popleft()
        if self._federation.on_message is not None:
            self._federation.on_message(delivery.message)
        self._run_of(delivery).handle(node.name, delivery.message)

    def _run_of(self, delivery: Delivery) -> FederationRun:
        return self._federation.runs[delivery.message.metadata.run_id]

    def _recount(self) -> None:
        if self._counted != self._run.checkpoint:
            self._counted, self._pushes, self._emitted = self._run.checkpoint, 0, 0

    def _prepared(
        self, message: Message, push: int, place: int, encoded: dict[int, tuple[RecordDict, bytes]]
    ) -> tuple[Node, Message]:
        """The message as its node gets it: through the wire format, with ids."""
        name = message.metadata.dst_node_id
        node = self._federation.nodes.get(name)
        if node is None:
            known = ", ".join(self._federation.nodes)
            raise AppError(f"there is no node {name!r}; the nodes are: {known}", run_id=self.run_id, node_id=name)
        content = message.content
        if id(content) not in encoded:
            encoded[id(content)] = (content, wire.encode(content).data)
        parts = (self.run_id, self._run.checkpoint, push, place, name)
        message_id = hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()
        metadata = replace(message.metadata, run_id=self.run_id, message_id=message_id, src_node_id="")
        return node, make_message(metadata, wire.decode(encoded[id(content)][1]))


def _unavailable(node: str) -> Error:
    return Error(ErrorCode.NODE_UNAVAILABLE, f"node {node} is offline")


def _expired(delivery: Delivery) -> Error:
    return Error(ErrorCode.MESSAGE_EXPIRED, f"no answer within its TTL of {delivery.message.metadata.ttl:g} s")
