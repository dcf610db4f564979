"""The federation in a process: its nodes, and what a test may do to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import fedq.apps.wire as wire
from fedq.apps.client_app import answer, unsendable
from fedq.apps.context import Context
from fedq.apps.error import Error
from fedq.apps.errors import AppError
from fedq.apps.message import Message
from fedq.apps.recorddict import RecordDict
from fedq.apps.testing.clock import Clock
from fedq.apps.testing.node import Node
from fedq.apps.testing.run import ClientCallable, FederationRun, ServerCallable
from fedq.apps.user_config import UserConfig, check_user_config

Delay = Callable[[Message], float]


class Federation:
    """Nodes that run ClientApps in this process, one message after the other, on a virtual clock.

    All that a deployment would send passes through the wire format here too; each node keeps the Context of each run;
    what a ClientApp raises becomes an error reply with the code it has in a deployment. Everything is deterministic.
    The clock moves when the ServerApp waits, and when it pulls and there is nothing new: what is next then happens
    behind that call, so that an app which pulls again and again gets its replies.

    Args:
        nodes: how many (they are called ``node-0``, ``node-1``, ... and have ``partition-id`` and ``num-partitions``
            in their node config), or their names (the same), or name -> node config.
        delays: virtual seconds that an answer takes: by node name (others: 0), or a function of the message. Answers
            of equal time come in the order of sending.
        offline: names of nodes that are known but not connected at first.
        on_message: called right before a node works on a message.
    """

    def __init__(
        self,
        nodes: int | Sequence[str] | Mapping[str, UserConfig] = 2,
        *,
        delays: Mapping[str, float] | Delay | None = None,
        offline: Iterable[str] = (),
        on_message: Callable[[Message], None] | None = None,
    ) -> None:
        self.clock = Clock()
        self.on_message = on_message
        self.runs: dict[int, FederationRun] = {}
        delay = delays if callable(delays) else _delay_by_node(delays or {})
        self.nodes: dict[str, Node] = {name: Node(name, config, delay) for name, config in _configs(nodes).items()}
        for name in offline:
            self.set_online(name, False)
        if isinstance(delays, Mapping):
            for name in delays:
                self._node(name)

    def run(
        self, server_app: ServerCallable, client_app: ClientCallable, config: Mapping[str, object] | None = None
    ) -> FederationRun:
        """Run a ServerApp with this ClientApp on the nodes, to its end. What the ServerApp raises is raised here."""
        return self.begin(server_app, client_app, config).execute()

    def begin(
        self, server_app: ServerCallable, client_app: ClientCallable, config: Mapping[str, object] | None = None
    ) -> FederationRun:
        """Make a run without executing it; see `FederationRun.execute`."""
        run_id = len(self.runs) + 1
        run = FederationRun(
            self, run_id, server_app, client_app, wire.encode_user_config(check_user_config(config or {}))
        )
        self.runs[run_id] = run
        return run

    def at(self, time: float, action: Callable[[], None]) -> None:
        """Plan something for a time of the clock, such as ``lambda: federation.set_online("node-1", True)``."""
        self.clock.at(time, action)

    def hold(self, node: str) -> None:
        """Keep a node from answering until it is released. It stays connected."""
        self._node(node).held = True

    def release(self, node: str) -> None:
        """Let a node go on."""
        self._node(node).held = False

    def set_online(self, node: str, online: bool) -> None:
        """Connect or disconnect a node. What it has to do waits, or fails if it was sent with ``on_offline="fail"``."""
        self._node(node).online = online

    def fail(self, node: str, failure: Error | BaseException | None, *, times: int | None = None) -> None:
        """Let a node answer its next messages (all, if `times` is None) by an error instead of calling the ClientApp.

        An exception is treated as if the ClientApp had raised it; None ends it.
        """
        self._node(node).fail(failure, times)

    def _node(self, name: str) -> Node:
        if name not in self.nodes:
            raise ValueError(f"there is no node {name!r}; the nodes are: {', '.join(self.nodes)}")
        return self.nodes[name]


def ask(
    client_app: ClientCallable,
    content: RecordDict,
    message_type: str = "train",
    *,
    context: Context | None = None,
    node_config: Mapping[str, object] | None = None,
    run_config: Mapping[str, object] | None = None,
) -> Message:
    """Send one message to a ClientApp and return its reply, for a test of a single function.

    Content and reply pass through the wire format. The reply is an error where the app raised. A `context` that is
    given is changed by the app, so that a later call sees it; else a new one is made of the configs.
    """
    if context is None:
        context = Context(
            run_id=1,
            node_id="node-0",
            node_config=check_user_config(node_config or {}, "node config"),
            state=RecordDict(),
            run_config=check_user_config(run_config or {}, "run config"),
        )
    message = Message(wire.decode(wire.encode(content).data), context.node_id, message_type)
    reply = answer(client_app, message, context)
    if reply.has_error():
        return reply
    try:
        return Message(wire.decode(wire.encode(reply.content).data), reply_to=message)
    except AppError as exc:
        return Message(unsendable(exc), reply_to=message)


def _configs(nodes: int | Sequence[str] | Mapping[str, UserConfig]) -> dict[str, UserConfig]:
    if isinstance(nodes, Mapping):
        return {name: check_user_config(config, f"config of {name}") for name, config in nodes.items()}
    if isinstance(nodes, int):
        width = len(str(nodes - 1))
        nodes = [f"node-{number:0{width}d}" for number in range(nodes)]
    return {name: {"partition-id": place, "num-partitions": len(nodes)} for place, name in enumerate(nodes)}


def _delay_by_node(delays: Mapping[str, float]) -> Delay:
    return lambda message: delays.get(message.metadata.dst_node_id, 0.0)
