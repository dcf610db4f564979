"""Each strategy over Redis: its ServerApp is lost in mid-round, goes on elsewhere, and ends with the same bits.

Secure aggregation is killed after any call in `test_grid_secagg`, asynchronous strategies in
`test_asynchronous_resume`; one as a process in `test_submit`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from fedq.apps import ArrayRecord, Context, Grid, Message, MetricRecord, ServerApp
from fedq.apps.strategy import Strategy
from fedq.relay.grid import RedisGrid
from tests.apps.strategies.cases import CASES, NODES, Case
from tests.apps.strategies.scripted import record, scripted_app
from tests.relay.link.conftest import Setting
from tests.relay.link.killing import Killed

FOLDED = 2  # replies of a round that its strategy has had when the ServerApp is lost
LOST_IN = (1, 3)  # rounds: one without a checkpoint of a round before it, one with all that is kept from round to round
QUICK = ("FedAdam", "FedMedian-on-disk", "DifferentialPrivacyClientSideAdaptiveClipping")
ROUNDS = [case for case in CASES if case.name != "SecAggPlus"]


class Nodes:
    """The nodes of a run. In a round that is to be interrupted only some answer; the others are still at work."""

    def __init__(self, setting: Setting, case: Case) -> None:
        self._app = scripted_app(case.rounds("float32")[1], case.mods)
        self._lock = threading.Lock()
        self._free = threading.Event()
        self._let_through: dict[int, int] = {}
        self.release()
        self.responders = [setting.node(f"node-{number}", self._answer) for number in range(NODES)]
        setting.stack.callback(self.release)

    def hold(self, server_round: int) -> None:
        """Let so many nodes answer in this round, and no more until `release`."""
        with self._lock:
            self._let_through[server_round] = FOLDED
        self._free.clear()

    def release(self) -> None:
        with self._lock:
            self._let_through.clear()
        self._free.set()

    def _answer(self, message: Message, context: Context) -> Message:
        if message.metadata.message_type == "train":
            self._wait(int(str(message.content.config_records["config"]["server-round"])))
        context.node_config["partition-id"] = int(context.node_id.removeprefix("node-"))
        return self._app(message, context)

    def _wait(self, server_round: int) -> None:
        with self._lock:
            left = self._let_through.get(server_round)
            if left:
                self._let_through[server_round] = left - 1
        if left == 0:
            assert self._free.wait(60)

    def taken(self) -> list[str]:
        """The messages that were carried out since the last call."""
        taken = sorted(message for responder in self.responders for message in responder.seen)
        for responder in self.responders:
            responder.seen.clear()
        return taken


def server_app(case: Case, lost_in: int | None = None) -> ServerApp:
    """Starts a new strategy each time, as a process that is started again does."""
    initial, rounds = case.rounds("float32")
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        sampled: dict[str, Any] = {"fraction_train": 0.6} if case.samples else {}
        strategy = case.make(**sampled, seed=5)
        if lost_in is not None:
            lose(strategy, lost_in)
        strategy.start(grid, record(initial), num_rounds=len(rounds), evaluate_fn=norm)

    return app


def norm(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    return MetricRecord({"bytes": sum(array.nbytes for array in arrays.values())})


def lose(strategy: Strategy, lost_in: int) -> None:
    """Have it end like a killed process when it asks for one more reply than the nodes have given."""
    aggregate = strategy.aggregate_train

    def some(replies: Iterable[Message]) -> Iterator[Message]:
        for number, reply in enumerate(replies, 1):
            yield reply
            if number == FOLDED:
                break
        raise Killed

    def aggregate_train(server_round: int, replies: Iterable[Message]) -> Any:
        return aggregate(server_round, some(replies) if server_round == lost_in else replies)

    strategy.aggregate_train = aggregate_train  # type: ignore[method-assign]


def outcome(setting: Setting, grid: RedisGrid) -> tuple[Any, ...]:
    """What a run ended with: the bits of the model, metrics, and what it told of its rounds."""
    result = grid.result
    assert result is not None
    arrays = {name: (str(array.dtype), array.shape, array.numpy().tobytes()) for name, array in result.arrays.items()}
    metrics = (
        result.train_metrics_clientapp,
        result.evaluate_metrics_clientapp,
        result.evaluate_metrics_serverapp,
    )
    told = [(event.kind, {k: v for k, v in event.data.items() if k != "seconds"}) for event in setting.told(grid)]
    return arrays, metrics, [(kind, data) for kind, data in told if kind in ("strategy", "round", "reply-failed")]


def marked(case: Case) -> Any:
    marks = () if str(case) in QUICK else (pytest.mark.slow,)
    return pytest.param(case, id=str(case), marks=marks)


@pytest.mark.parametrize("case", [marked(case) for case in ROUNDS])
def test_a_strategy_that_was_lost_in_mid_round_ends_with_the_same_bits(case: Case, setting: Setting) -> None:
    nodes = Nodes(setting, case)
    grid = setting.grid()
    server_app(case)(grid, grid.context)
    whole, carried_out = outcome(setting, grid), nodes.taken()

    grid = setting.grid()
    for lost_in in LOST_IN:
        nodes.hold(lost_in)
        with pytest.raises(Killed):
            server_app(case, lost_in)(grid, grid.context)
        grid = setting.interrupt(grid)
        nodes.release()
    server_app(case)(grid, grid.context)
    assert outcome(setting, grid) == whole
    taken = nodes.taken()
    assert len(taken) == len(set(taken)), "a message was carried out twice"
    assert len(taken) == len(carried_out)
