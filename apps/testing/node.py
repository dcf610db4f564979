"""One node of the federation in a process: a queue of messages and a Context for each run."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import fedq.apps.wire as wire
from fedq.apps.client_app import answer, unsendable
from fedq.apps.context import Context
from fedq.apps.error import Error
from fedq.apps.errors import AppError
from fedq.apps.message import Message
from fedq.apps.recorddict import RecordDict
from fedq.apps.user_config import UserConfig


@dataclass
class Delivery:
    """A message on its way to a node. `due` is when the node has the answer, `expires` the end of its TTL."""

    message: Message
    number: int
    due: float
    expires: float
    on_offline: str


class Node:
    """A node: its config, whether it is there, what it has to do and the Contexts of its runs.

    Contexts are kept encoded, so that a message sees what the last one that succeeded left and nothing else.
    """

    def __init__(self, name: str, config: UserConfig, delay: Callable[[Message], float]) -> None:
        self.name = name
        self.config = config
        self.delay = delay
        self.online = True
        self.held = False
        self.queue: deque[Delivery] = deque()
        self._contexts: dict[int, bytes] = {}
        self._failures: deque[Error | BaseException] = deque()
        self._always: Error | BaseException | None = None
        self._free_at = 0.0

    def deliver(self, message: Message, number: int, now: float, on_offline: str) -> Delivery:
        """Put a message into the queue. A node works on one message after the other."""
        due = max(now, self._free_at) + self.delay(message)
        self._free_at = due
        delivery = Delivery(message, number, due, now + message.metadata.ttl, on_offline)
        self.queue.append(delivery)
        return delivery

    @property
    def next_delivery(self) -> Delivery | None:
        """What the node would answer next, or None when there is nothing or it cannot."""
        return self.queue[0] if self.queue and self.online and not self.held else None

    def fail(self, failure: Error | BaseException | None, times: int | None) -> None:
        """Fail the next messages, or all (`times` is None), instead of calling the app; None ends that."""
        self._failures.clear()
        self._always = None
        if failure is None:
            return
        if times is None:
            self._always = failure
        else:
            self._failures.extend([failure] * times)

    def context(self, run_id: int, run_config: UserConfig) -> Context:
        """The Context of a run as the last message that succeeded has left it."""
        kept = self._contexts.get(run_id)
        state = RecordDict() if kept is None else wire.decode(kept)
        return Context(
            run_id=run_id, node_id=self.name, node_config=dict(self.config), state=state, run_config=dict(run_config)
        )

    def handle(
        self, app: Callable[[Message, Context], Message], message: Message, run_config: UserConfig
    ) -> bytes | Error:
        """Call the app; its answer as it travels. An answer that is an error leaves the Context as it was."""
        context = self.context(message.metadata.run_id, run_config)
        failure = self._failures.popleft() if self._failures else self._always
        if isinstance(failure, Error):
            return failure
        reply = answer(app if failure is None else _raiser(failure), message, context)
        if reply.has_error():
            return reply.error
        try:
            body, state = wire.encode(reply.content).data, wire.encode(context.state).data
        except AppError as exc:
            return unsendable(exc)
        self._contexts[message.metadata.run_id] = state
        return body


def _raiser(failure: BaseException) -> Callable[[Message, Context], Message]:
    def raise_it(message: Message, context: Context) -> Message:
        raise failure

    return raise_it
