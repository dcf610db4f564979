"""With a reply budget the server never holds more replies than it has room for, and the result has the same bits."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest

from fedq.apps import ArrayRecord, Context, Error, Grid, Message, MetricRecord, RecordDict, ServerApp
from fedq.apps import strategy as strategies
from fedq.apps.errors import StrategyError
from fedq.apps.strategy import CompressedBroadcast, FedAvg, FedMedian, SecAggPlus, Strategy
from fedq.apps.strategy.windowed import Room, array_bytes
from fedq.apps.testing import Federation, FederationRun, Interrupted
from tests.apps.strategies.cases import CASES, NODES, Case
from tests.apps.strategies.scripted import record, scripted_app

SUMS_UP = [
    case
    for case in CASES
    if case.name.startswith(("FedAvg", "FedProx", "FedAd", "FedYogi", "QFedAvg", "DifferentialPrivacy"))
]
QUICK = ("FedAvg", "QFedAvg", "DifferentialPrivacyClientSideAdaptiveClipping-noise")
BY_CASE = [pytest.param(case, id=str(case), marks=() if str(case) in QUICK else pytest.mark.slow) for case in SUMS_UP]


def budget_for(replies: int, case: Case) -> int:
    """With that many replies of the case's model in it, at first."""
    content = RecordDict({"arrays": record(case.rounds("float32")[0])})
    room = Room(1_000_000, [Message(content, "node-0", "train")])
    needed = replies * room.reply + (0.9 * 1_000_000 - room.capacity)
    return int(needed / 0.9) + 1


class Watched:
    """A federation that notes the most bytes of replies that have lain there at once, those under way among them."""

    def __init__(self, case: Case, **options: Any) -> None:
        self.case = case
        self.most = 0
        self.reply = 0
        names = [f"node-{number}" for number in range(NODES)]
        # Not in the order of their names.
        delays = {name: float((3 * place) % NODES) for place, name in enumerate(names)}
        self.federation = Federation(names, delays=delays, on_message=self.look, **options)
        self.run: FederationRun | None = None

    def begin(self, app: ServerApp) -> FederationRun:
        self.run = self.federation.begin(app, scripted_app(self.case.rounds("float32")[1], self.case.mods))
        return self.run

    def look(self, message: Message) -> None:
        assert self.run is not None
        if message.metadata.message_type != "train":
            return
        self.reply = array_bytes(message.content)  # those that train reply as much
        train = [m for m in self.run.answers if self.run.asked[m].metadata.message_type == "train"]
        replies = [self.run.reply(m) for m in train]
        held = sum(array_bytes(reply.content) for reply in replies if reply is not None and reply.has_content())
        under_way = sum(len(node.queue) for node in self.federation.nodes.values()) + 1
        self.most = max(self.most, held + under_way * self.reply)


def server_app(case: Case, budget: int | None, *, lost: Iterator[int] | None = None, **options: Any) -> ServerApp:
    initial, rounds = case.rounds("float32")
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = case.make(seed=5, reply_budget=budget, **options)
        if lost is not None:
            lose(strategy, lost)
        strategy.start(grid, record(initial), num_rounds=len(rounds), evaluate_fn=norm)

    return app


def norm(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    return MetricRecord({"norm": float(np.linalg.norm(arrays.to_numpy_ndarrays()[0]))})


class Lost(Exception):
    """The ServerApp was lost."""


def lose(strategy: Strategy, after: Iterator[int]) -> None:
    """Have it end in the midst of its round, when so many replies have been taken since it was started."""
    aggregate = strategy.aggregate_train
    left = next(after, 0)

    def some(replies: Iterable[Message]) -> Iterator[Message]:
        nonlocal left
        for reply in replies:
            yield reply
            left -= 1
            if left == 0:
                raise Lost

    def aggregate_train(server_round: int, replies: Iterable[Message]) -> Any:
        return aggregate(server_round, some(replies))

    strategy.aggregate_train = aggregate_train  # type: ignore[method-assign]


def outcome(run: FederationRun) -> tuple[Any, ...]:
    result = run.result
    arrays = {name: (array.dtype, array.shape, array.numpy().tobytes()) for name, array in result.arrays.items()}
    metrics = (
        result.train_metrics_clientapp,
        result.evaluate_metrics_clientapp,
        result.evaluate_metrics_serverapp,
    )
    told = [(event.kind, {k: v for k, v in event.data.items() if k != "seconds"}) for event in run.events]
    return arrays, metrics, told, run.executions


@pytest.mark.parametrize("replies", [1, 2, 4])
@pytest.mark.parametrize("case", BY_CASE)
def test_replies_keep_within_the_budget_and_the_result_has_the_same_bits(case: Case, replies: int) -> None:
    whole = Watched(case).begin(server_app(case, None)).execute()
    budget = budget_for(replies, case)
    watched = Watched(case)
    run = watched.begin(server_app(case, budget)).execute()
    assert outcome(run) == outcome(whole)
    assert watched.reply <= watched.most <= budget
    assert len(run.checkpoints) > len(whole.checkpoints), "no partial aggregate was saved"
    assert run.answers == {}


@pytest.mark.parametrize("case", BY_CASE)
def test_a_run_that_is_interrupted_behind_each_checkpoint_ends_with_the_same_bits(case: Case) -> None:
    whole = Watched(case).begin(server_app(case, None)).execute()
    watched = Watched(case)
    budget = budget_for(3, case)
    run = watched.begin(server_app(case, budget))
    number = 1
    while True:
        try:
            run.execute(stop_after_checkpoint=number)
            break
        except Interrupted:
            number += 1
    assert outcome(run) == outcome(whole)
    assert watched.most <= budget
    assert number > len(whole.checkpoints) + 3


@pytest.mark.parametrize("case", BY_CASE)
def test_a_run_that_is_lost_behind_any_reply_ends_with_the_same_bits(case: Case) -> None:
    whole = Watched(case).begin(server_app(case, None, fraction_train=0.8)).execute()
    run = Watched(case).begin(server_app(case, budget_for(2, case), lost=iter([1, 2, 3, 1, 5, 4]), fraction_train=0.8))
    lost = 0
    while True:
        try:
            run.execute()
            break
        except Lost:
            lost += 1
    assert lost == 6
    assert outcome(run) == outcome(whole)


def test_a_model_that_goes_down_compressed_has_replies_within_the_budget_too() -> None:
    case = CASES[0]

    def begun(budget: int | None) -> FederationRun:
        app = ServerApp()

        @app.main()
        def main(grid: Grid, context: Context) -> None:
            strategy = CompressedBroadcast(FedAvg(reply_budget=budget, seed=5), precision="float16")
            strategy.start(grid, record(case.rounds("float32")[0]), num_rounds=3)

        return Watched(case).begin(app)

    whole = begun(None).execute()
    run = begun(budget_for(2, case))
    number = 1
    while True:
        try:
            run.execute(stop_after_checkpoint=number)
            break
        except Interrupted:
            number += 1
    assert outcome(run) == outcome(whole)
    assert number > len(whole.checkpoints)


def failing(budget: int | None, lost: Iterator[int] | None = None) -> FederationRun:
    watched = Watched(CASES[0])
    for name in ("node-1", "node-4", "node-5"):
        watched.federation.fail(name, Error(1000, "no data"))
    run = watched.begin(server_app(CASES[0], budget, lost=lost))
    while True:
        try:
            return run.execute()
        except Lost:
            pass


def test_failures_are_told_and_counted_once() -> None:
    whole = failing(None)
    assert sum(event.kind == "reply-failed" for event in whole.events) > 8
    run = failing(budget_for(2, CASES[0]), lost=iter([2, 3, 4, 5]))
    events = [
        sorted((kind, repr({k: v for k, v in data.items() if k != "message"})) for kind, data in outcome(each)[2])
        for each in (run, whole)
    ]
    assert events[0] == events[1], "in another order of arrival, perhaps, and of messages with other ids"
    assert outcome(run)[:2] == outcome(whole)[:2]


def test_metrics_of_ones_own_get_all_replies() -> None:
    def listed(replies: list[RecordDict], key: str) -> MetricRecord:
        return MetricRecord({"examples": [int(r.metric_records["metrics"][key]) for r in replies]})  # type: ignore[arg-type]

    case = CASES[0]
    run = Watched(case).begin(server_app(case, budget_for(2, case), lost=iter([3, 4]), train_metrics_aggr_fn=listed))
    for _ in range(2):
        with pytest.raises(Lost):
            run.execute()
    run.execute()
    examples = [metrics["examples"] for metrics in run.result.train_metrics_clientapp.values()]
    assert examples == [[3 + 2 * node for node in range(NODES)]] * 3


def test_first_k_of_n_sends_no_more_than_it_takes() -> None:
    case = CASES[0]
    run = Watched(case).begin(server_app(case, budget_for(2, case), min_replies=3, fraction_evaluate=0.0)).execute()
    rounds = [event.data for event in run.events if event.kind == "round"]
    assert [data["replies"] for data in rounds] == [3, 3, 3]
    assert [data["unanswered"] for data in rounds] == [NODES - 3] * 3
    assert run.messages < 3 * NODES


def test_the_time_out_is_that_of_the_round_however_often_it_was_interrupted() -> None:
    app = ServerApp()
    case = CASES[0]

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = FedAvg(reply_budget=budget_for(1, case), fraction_evaluate=0.0)
        strategy.start(grid, record(case.rounds("float32")[0]), num_rounds=1, timeout=25.0)

    watched = Watched(case)
    for node in watched.federation.nodes.values():
        node.delay = lambda message: 10.0
    run = watched.begin(app)
    for number in (1, 2):
        with pytest.raises(Interrupted):
            run.execute(stop_after_checkpoint=number)
    run.execute()
    (data,) = [event.data for event in run.events if event.kind == "round"]
    assert (data["replies"], data["unanswered"]) == (2, NODES - 2)


def test_nodes_that_are_not_connected_are_asked_last() -> None:
    asked: list[str] = []
    watched = Watched(CASES[0], offline=["node-0", "node-1"])
    look = watched.federation.on_message

    def note(message: Message) -> None:
        asked.append(message.metadata.dst_node_id)
        if len(asked) == NODES - 2:
            for name in ("node-0", "node-1"):
                watched.federation.set_online(name, True)
        assert look is not None
        look(message)

    watched.federation.on_message = note
    run = watched.begin(server_app(CASES[0], budget_for(1, CASES[0]), fraction_evaluate=0.0))
    run.execute()
    assert set(asked[: NODES - 2]) == {f"node-{number}" for number in range(2, NODES)}


def test_where_there_is_room_for_all_nothing_is_saved_in_mid_round() -> None:
    case = CASES[0]
    whole = Watched(case).begin(server_app(case, None)).execute()
    run = Watched(case).begin(server_app(case, budget_for(NODES, case))).execute()
    assert outcome(run) == outcome(whole)
    assert len(run.checkpoints) == len(whole.checkpoints)


def test_a_budget_without_room_for_one_reply_is_refused_with_the_least_that_will_do() -> None:
    case = CASES[0]
    least = budget_for(1, case)
    with pytest.raises(StrategyError, match=f"has no room for a reply: .* it must be at least {least}"):
        Watched(case).begin(server_app(case, least - 2)).execute()
    with pytest.raises(ValueError, match="reply_budget is a number of bytes, not 0"):
        FedAvg(reply_budget=0)


def test_strategies_that_need_all_replies_refuse_a_budget() -> None:
    with pytest.raises(ValueError, match="FedMedian needs all replies of a round at once"):
        FedMedian(reply_budget=1000)
    with pytest.raises(ValueError, match="SecAggPlus keeps no partial sum"):
        SecAggPlus(FedAvg(reply_budget=1000))


def test_every_strategy_sums_up_within_a_budget_or_is_known_not_to() -> None:
    sums_up = {"CompressedBroadcast", *(case.name for case in SUMS_UP)}
    keeps_all = {"FedMedian", "FedTrimmedAvg", "Krum", "MultiKrum", "Bulyan", "FedXgbBagging"}
    others = {"FedXgbCyclic": "asks one node", "FedAsync": "asynchronous", "FedBuff": "asynchronous", "SecAggPlus": ""}
    classes = (cls for name in strategies.__all__ if isinstance(cls := getattr(strategies, name), type))
    concrete = {cls.__name__ for cls in classes if issubclass(cls, Strategy) and not inspect.isabstract(cls)}
    assert sums_up | keeps_all | set(others) == concrete
    for name in ("FedAsync", "FedBuff"):
        with pytest.raises(TypeError, match="reply_budget"):
            getattr(strategies, name)(reply_budget=1000)


def test_a_strategy_that_does_not_say_what_it_has_is_told_how_to() -> None:
    class Last(FedAvg):
        def aggregate_train(
            self, server_round: int, replies: Iterable[Message]
        ) -> tuple[ArrayRecord | None, MetricRecord | None]:
            kept: list[ArrayRecord] = []
            metrics = self.fold(replies, lambda reply: kept.append(reply.arrays), None)
            return kept[-1], metrics.result()

    case = CASES[0]
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        Last(reply_budget=budget_for(2, case)).start(grid, record(case.rounds("float32")[0]), num_rounds=3)

    with pytest.raises(StrategyError, match="Last does not say what it has made of the replies so far"):
        Watched(case).begin(app).execute()


def goes_through_them_again(strategy: FedAvg, again: Callable[[int, Iterable[Message]], object]) -> None:
    first = strategy.aggregate_train

    def aggregate_train(server_round: int, replies: Iterable[Message]) -> Any:
        first(server_round, replies)
        return again(server_round, replies)

    strategy.aggregate_train = aggregate_train  # type: ignore[method-assign]
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        strategy.start(grid, record(CASES[0].rounds("float32")[0]), num_rounds=1)

    Watched(CASES[0]).begin(app).execute()


def test_replies_that_were_freed_cannot_be_gone_through_again() -> None:
    first, second = (FedAvg(reply_budget=budget_for(2, CASES[0])) for _ in range(2))
    with pytest.raises(StrategyError, match="freed as they are aggregated: go through them once"):
        goes_through_them_again(first, lambda server_round, replies: list(replies))
    with pytest.raises(StrategyError, match="the replies of a round are gone through once"):
        goes_through_them_again(second, second.aggregate_train)
