"""One run of a ServerApp and a ClientApp in the federation of a process, and what remains of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import fedq.apps.wire as wire
from fedq.apps.context import Context
from fedq.apps.error import Error, ErrorCode
from fedq.apps.errors import AppError, FedqError
from fedq.apps.grid import JSON, Grid
from fedq.apps.message import Message, make_message
from fedq.apps.recorddict import RecordDict
from fedq.apps.strategy.result import Result
from fedq.apps.user_config import UserConfig

if TYPE_CHECKING:
    from fedq.apps.testing.federation import Federation

ServerCallable = Callable[[Grid, Context], object]
ClientCallable = Callable[[Message, Context], Message]


class FederationStuck(FedqError):
    """The ServerApp waits without limit for nodes that nothing in the federation will connect."""


class Interrupted(FedqError):
    """The ServerApp was ended behind a checkpoint, as the test had asked for."""


@dataclass(frozen=True)
class Event:
    """What a run told while it went on. `time` is that of the federation's clock."""

    kind: str
    data: Mapping[str, JSON]
    time: float


class FederationRun:
    """A run. `execute` it, as often as it takes: each time the ServerApp goes on from the last checkpoint."""

    def __init__(
        self, federation: Federation, run_id: int, server_app: ServerCallable, client_app: ClientCallable, config: bytes
    ) -> None:
        self.run_id = run_id
        self.federation = federation
        self.client_app = client_app
        self.checkpoint = 0
        self.checkpoints: list[bytes] = []
        self.stop_after: int | None = None
        self.sent: dict[str, str] = {}  # message id -> node
        self.answers: dict[str, bytes | Error] = {}
        self.asked: dict[str, Message] = {}  # without content, to address the replies
        self.arrived: dict[str, int] = {}  # message id -> place in the order of arrival
        self.pulled: dict[str, None] = {}  # what this execution has had, in that order, and is not folded
        self._left: list[str] = []  # of that what the last checkpoint left for later
        self.folded: set[str] = set()
        self.published: Result | None = None
        self._server_app = server_app
        self._config = config
        self._events: dict[tuple[int, int], Event] = {}
        self._handled = 0
        self._noted = 0

    def execute(self, *, stop_after_checkpoint: int | None = None) -> FederationRun:
        """Call the ServerApp with a Context that is that of the last checkpoint.

        Args:
            stop_after_checkpoint: end the ServerApp as soon as so many checkpoints of the run are written, as a crash
                would, by raising `Interrupted` out of ``context.save``.

        Raises:
            Interrupted: see above.
            FederationStuck: it waits for nodes without limit, and none will come.
            Exception: whatever the ServerApp raises.
        """
        from fedq.apps.testing.grid import FederationGrid

        self.stop_after = stop_after_checkpoint
        self.pulled = dict.fromkeys(self._left)
        context = self.server_context
        context._saver = self._save
        self._server_app(FederationGrid(self, context), context)
        return self

    @property
    def config(self) -> UserConfig:
        """A copy of the run's config."""
        return wire.decode_user_config(self._config)

    @property
    def result(self) -> Result:
        """The result that the ServerApp published."""
        if self.published is None:
            raise AppError(
                "the run has no result: start a strategy in the ServerApp, or return a Result from its main",
                run_id=self.run_id,
            )
        return self.published

    @property
    def events(self) -> list[Event]:
        """The events so far, in order; each once, however often the ServerApp was executed."""
        return list(self._events.values())

    @property
    def server_context(self) -> Context:
        """The ServerApp's Context as of the last checkpoint."""
        state = wire.decode(self.checkpoints[-1]) if self.checkpoints else RecordDict()
        return Context(run_id=self.run_id, node_id="", node_config={}, state=state, run_config=self.config)

    @property
    def contexts(self) -> dict[str, Context]:
        """The Context of each node, as its last message that succeeded left it."""
        return {name: node.context(self.run_id, self.config) for name, node in self.federation.nodes.items()}

    @property
    def messages(self) -> int:
        """How many messages were sent."""
        return len(self.sent)

    @property
    def replies(self) -> int:
        """How many messages were answered, by an error or otherwise."""
        return len(self.arrived)

    @property
    def executions(self) -> int:
        """How often a node called the ClientApp."""
        return self._handled

    @property
    def errors(self) -> dict[str, Error]:
        """The error answers that are not freed yet, by message id."""
        return {message_id: answer for message_id, answer in self.answers.items() if isinstance(answer, Error)}

    # ------------------------------------------------------------------ called by the grid

    def handle(self, node_name: str, message: Message) -> None:
        """Let a node work on a message and keep its answer, encoded as it would travel."""
        self._handled += 1
        answer = self.federation.nodes[node_name].handle(self.client_app, message, self.config)
        self.answer(message.metadata.message_id, answer)

    def answer(self, message_id: str, answer: bytes | Error) -> None:
        """Keep an answer; the first one stands."""
        if message_id not in self.arrived:
            self.answers[message_id] = answer
            self.arrived[message_id] = len(self.arrived)

    def reply(self, message_id: str) -> Message | None:
        """The reply to a message, decoded anew, or None while there is none or when it was freed."""
        answer = self.answers.get(message_id)
        if answer is None:
            return None
        made = Message(RecordDict(), reply_to=self.asked[message_id]).metadata
        metadata = replace(made, message_id=f"{message_id}-reply")
        if isinstance(answer, Error):
            return make_message(metadata, error=answer)
        return make_message(metadata, wire.decode(answer))

    def emit(self, number: int, kind: str, data: Mapping[str, JSON]) -> None:
        """Keep an event, unless that place is taken: the ServerApp was here before."""
        self._events.setdefault((self.checkpoint, number), Event(kind, dict(data), self.federation.clock.now))

    def note(self, kind: str, data: Mapping[str, JSON]) -> None:
        """Keep an event that has no place among those of the app."""
        self._noted += 1
        self._events[self.checkpoint, -self._noted] = Event(kind, dict(data), self.federation.clock.now)

    def _save(self, context: Context, folded: Iterable[str] | None) -> None:
        self.checkpoints.append(wire.encode(context.state).data)
        self.checkpoint += 1
        for message_id in list(self.pulled if folded is None else folded):
            self.folded.add(message_id)
            self.answers.pop(message_id, None)
            self.pulled.pop(message_id, None)
        self._left = list(self.pulled)
        if self.stop_after is not None and len(self.checkpoints) >= self.stop_after:
            raise Interrupted(f"ended behind checkpoint {len(self.checkpoints)}", run_id=self.run_id)


def cancelled(message_id: str) -> Error:
    """The answer to a message that was cancelled."""
    return Error(ErrorCode.CANCELLED, f"message {message_id} was cancelled by the ServerApp")
