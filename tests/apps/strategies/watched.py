"""A run with secure aggregation that keeps all that its server is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from fedq.apps import ClientApp, Context, Grid, Message, ServerApp
from fedq.apps.mod import secaggplus_mod
from fedq.apps.secagg import stages
from fedq.apps.strategy import FedAvg, SecAggPlus
from fedq.apps.testing import Federation, FederationRun
from fedq.apps.testing.run import ClientCallable
from tests.apps.strategies.cases import replies
from tests.apps.strategies.scripted import record, scripted_app

STAGES = (stages.SETUP, stages.SHARE, stages.COLLECT, stages.UNMASK)
OPTIONS: dict[str, Any] = {"clipping_range": 64.0}


class Watched:
    """A run with `nodes` nodes, some of which drop out; keeps all that the server was given, and each masked sum."""

    def __init__(
        self,
        nodes: int,
        drops: Mapping[int, str] | None = None,
        *,
        node_config: Callable[[int], dict[str, Any]] = lambda number: {},
        rounds: int = 1,
        mods: Sequence[Any] = (secaggplus_mod,),
        around: Callable[[ClientApp], ClientCallable] = lambda app: app,
        **options: Any,
    ) -> None:
        self.initial, self.rounds = replies("float32", rounds=rounds, nodes=nodes)
        self.names = [f"node-{number}" for number in range(nodes)]
        self.drops = {self.names[node]: stage for node, stage in (drops or {}).items()}
        self.options = {**OPTIONS, **options}
        self.strategy = SecAggPlus(FedAvg(fraction_evaluate=0.0, max_failed_rounds=1), **self.options)
        self.sums: list[NDArray[Any]] = []
        self.received: list[bytes] = []
        self.masked: list[NDArray[Any]] = []
        secure_sum = self.strategy._secure_sum

        def kept(replies: Any) -> tuple[NDArray[Any], int]:
            total, count = secure_sum(replies)
            self.sums.append(total.copy())
            return total, count

        self.strategy._secure_sum = kept  # type: ignore[method-assign]
        configs = {
            name: {"partition-id": number, "num-partitions": nodes, **node_config(number)}
            for number, name in enumerate(self.names)
        }
        self.federation = Federation(configs, on_message=self._maybe_drop)
        app = ServerApp()

        @app.main()
        def main(grid: Grid, context: Context) -> None:
            self.strategy.start(grid, record(self.initial), num_rounds=rounds)

        self.run = self.federation.begin(app, around(scripted_app(self.rounds, mods)))
        answer = self.run.answer

        def listening(message_id: str, answered: Any) -> None:
            answer(message_id, answered)
            if isinstance(answered, bytes):
                self.received.append(answered)
                reply = self.run.reply(message_id)
                if reply is not None and stages.MASKED in reply.content:
                    self.masked.append(reply.content.array_records[stages.MASKED][stages.MASKED].numpy())

        self.run.answer = listening  # type: ignore[method-assign]

    def _maybe_drop(self, message: Message) -> None:
        stage = message.content.config_records[stages.RECORD]["stage"]
        node = message.metadata.dst_node_id
        if node in self.drops and STAGES.index(str(stage)) >= STAGES.index(self.drops[node]):
            self.federation.fail(node, RuntimeError("the site lost its power"), times=1)

    def execute(self) -> FederationRun:
        return self.run.execute()

    @property
    def refusals(self) -> list[str]:
        """Why replies were of no use."""
        return [str(event.data["reason"]) for event in self.run.events if event.kind == "reply-failed"]

    def quantized(self, node: int) -> NDArray[Any]:
        reply = self.rounds[0][node]
        return self.strategy.quantization.quantized(record(self.initial), record(reply.arrays), reply.examples)

    def expected(self, nodes: Any) -> NDArray[Any]:
        total: NDArray[Any] = sum(self.quantized(node) for node in nodes)  # type: ignore[assignment]
        return total
