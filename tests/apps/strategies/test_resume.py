"""A strategy that was interrupted behind a checkpoint, or killed in mid-round, ends with the same bits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from fedq.apps import ArrayRecord, Context, Grid, Message, MetricRecord, ServerApp
from fedq.apps.strategy import Strategy
from fedq.apps.testing import Federation, FederationRun, Interrupted
from tests.apps.strategies.cases import CASES, NODES, Case
from tests.apps.strategies.scripted import record, scripted_app


def server_app(case: Case, crash_in: dict[int, str] | None = None) -> ServerApp:
    """Starts a new strategy each time. `crash_in` says in which round it ends, once each, and where."""
    left = dict(crash_in or {})
    initial, rounds = case.rounds("float32")
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        # Half of the nodes are sampled, so that the state of the sampling counts too.
        sampled: dict[str, Any] = {"fraction_train": 0.6} if case.samples else {}
        strategy = case.make(**sampled, seed=5)
        _crash(strategy, left)
        strategy.start(grid, record(initial), num_rounds=len(rounds), evaluate_fn=norm)

    return app


def norm(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    return MetricRecord({"bytes": sum(array.nbytes for array in arrays.values())})


def _crash(strategy: Strategy, left: dict[int, str]) -> None:
    aggregate = strategy.aggregate_train

    def crashing(server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        where = left.pop(server_round, None)

        def first() -> Iterator[Message]:
            for reply in replies:
                yield reply
                raise MemoryError("in the middle of a round")

        if where == "at the first reply":
            aggregate(server_round, first())
        result = aggregate(server_round, replies)
        if where is not None:
            raise MemoryError("before the checkpoint of the round")
        return result

    strategy.aggregate_train = crashing  # type: ignore[method-assign]


def told(run: FederationRun) -> list[tuple[str, dict[str, object]]]:
    return [(event.kind, {k: v for k, v in event.data.items() if k != "seconds"}) for event in run.events]


def same(run: FederationRun, whole: FederationRun) -> None:
    assert run.result == whole.result
    for name, array in run.result.arrays.items():
        assert array.numpy().tobytes() == whole.result.arrays[name].numpy().tobytes()
    assert run.executions == whole.executions, "a message was sent twice"
    assert told(run) == told(whole)


def begun(case: Case, app: ServerApp) -> FederationRun:
    return Federation(NODES).begin(app, scripted_app(case.rounds("float32")[1], case.mods))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_interrupted_run_ends_with_the_same_bits(case: Case) -> None:
    whole = begun(case, server_app(case)).execute()
    last = len(whole.checkpoints)
    for behind in ([1], [last - 1], list(range(1, last + 1))):
        run = begun(case, server_app(case))
        for checkpoint in behind:
            with pytest.raises(Interrupted):
                run.execute(stop_after_checkpoint=checkpoint)
        same(run.execute(), whole)


@pytest.mark.parametrize("where", ["at the first reply", "after the aggregation"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_run_that_was_killed_in_mid_round_ends_with_the_same_bits(case: Case, where: str) -> None:
    whole = begun(case, server_app(case)).execute()
    run = begun(case, server_app(case, {1: where, 3: where}))
    for _ in range(2):
        with pytest.raises(MemoryError):
            run.execute()
    same(run.execute(), whole)
