"""A run that was interrupted behind any checkpoint ends with the same bits as one that was not."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest

from fedq.apps import ArrayRecord, ConfigRecord, Context, Grid, Message, MetricRecord, RecordDict, ServerApp
from fedq.apps.strategy import FedAvg, Result, metrics_log
from fedq.apps.strategy.errors import CheckpointError
from fedq.apps.strategy.metrics_log import SEGMENT
from fedq.apps.strategy.sampling import Sampler
from fedq.apps.testing import Federation, FederationRun, Interrupted
from fedq.apps.wire import decode, encode
from fedq.relay.objects import INLINE_LIMIT
from tests.apps.federations import averaging_app, model_of, training_app


def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    return MetricRecord({"norm": float(np.linalg.norm(arrays.to_numpy_ndarrays()[0])), "round": server_round})


def interrupted(app: ServerApp, behind: list[int], nodes: int = 6) -> FederationRun:
    run = Federation(nodes).begin(app, training_app())
    for checkpoint in behind:
        with pytest.raises(Interrupted):
            run.execute(stop_after_checkpoint=checkpoint)
    return run.execute()


def told(run: FederationRun) -> list[tuple[str, dict[str, object]]]:
    return [(event.kind, {k: v for k, v in event.data.items() if k != "seconds"}) for event in run.events]


@pytest.mark.parametrize("behind", [[1], [2], [4], [5], [1, 2, 3, 4, 5]])
def test_an_interrupted_run_ends_like_one_that_was_not(behind: list[int]) -> None:
    app = averaging_app(lambda: FedAvg(fraction_train=0.5, seed=3), rounds=5, evaluate_fn=evaluate)
    whole = Federation(6).run(app, training_app())
    run = interrupted(app, behind)

    assert run.result == whole.result
    assert model_of(run.result).tobytes() == model_of(whole.result).tobytes()
    assert (run.messages, run.executions) == (whole.messages, whole.executions)
    assert told(run) == told(whole)
    assert run.contexts == whole.contexts


def test_a_run_that_is_started_again_before_its_first_checkpoint_asks_the_same_nodes() -> None:
    app = averaging_app(lambda: FedAvg(fraction_train=0.34), rounds=2)
    whole = Federation(6).run(app, training_app())

    class Crashes(FedAvg):
        def aggregate_train(
            self, server_round: int, replies: Iterable[Message]
        ) -> tuple[ArrayRecord | None, MetricRecord | None]:
            next(iter(replies))
            raise MemoryError("in the middle of the first round")

    strategies = [Crashes(fraction_train=0.34), FedAvg(fraction_train=0.34)]
    run = Federation(6).begin(averaging_app(lambda: strategies.pop(0), rounds=2), training_app())
    with pytest.raises(MemoryError):
        run.execute()
    assert run.execute().result == whole.result
    assert run.executions == whole.executions


@pytest.mark.parametrize("crashes_at", [1, 2, 3])
def test_a_round_that_was_told_but_not_saved_is_told_once(crashes_at: int) -> None:
    whole = Federation(3).run(averaging_app(rounds=3, evaluate_fn=evaluate), training_app())
    crashed: list[int] = []

    class Crashes(FedAvg):
        def save_state(self) -> RecordDict:
            if self._round == crashes_at and not crashed:
                crashed.append(self._round)
                raise MemoryError("after the event, before the checkpoint")
            return super().save_state()

    run = Federation(3).begin(averaging_app(Crashes, rounds=3, evaluate_fn=evaluate), training_app())
    with pytest.raises(MemoryError):
        run.execute()
    run.execute()
    assert [event for event in told(run) if event[0] == "round"] == [
        event for event in told(whole) if event[0] == "round"
    ]
    assert run.result == whole.result
    assert run.executions == whole.executions


def test_runs_without_a_seed_ask_different_nodes() -> None:
    federation = Federation(12)
    app = averaging_app(lambda: FedAvg(fraction_train=0.34), rounds=3)
    asked = [[m.metadata.dst_node_id for m in federation.run(app, training_app()).asked.values()] for _ in range(2)]
    assert asked[0] != asked[1]


def test_the_state_of_the_sampling_is_kept() -> None:
    app = averaging_app(lambda: FedAvg(fraction_train=0.34), rounds=6)
    run = Federation(6).begin(app, training_app())
    with pytest.raises(Interrupted):
        run.execute(stop_after_checkpoint=3)
    kept = run.server_context.state.config_records["strategy-1.state.sampling"]["state"]
    run.execute()
    sampler = Sampler(0)
    sampler.state = str(kept)
    remaining = [sampler.sample([f"node-{k}" for k in range(6)], 2) for _ in range(3)]
    asked: dict[str, list[str]] = {}
    for message in run.asked.values():
        if message.metadata.message_type == "train":
            asked.setdefault(message.metadata.group_id, []).append(message.metadata.dst_node_id)
    assert [asked[number] for number in ("4", "5", "6")] == remaining


def test_what_went_into_a_checkpoint_is_freed() -> None:
    run = Federation(3).run(averaging_app(rounds=4), training_app())
    assert run.messages == 24
    assert run.answers == {}
    assert len(run.checkpoints) == 4


def test_a_strategy_with_a_state_of_its_own_takes_it_up_again() -> None:
    class Momentum(FedAvg):
        def __init__(self) -> None:
            super().__init__()
            self.momentum = np.zeros(5)

        def aggregate_train(
            self, server_round: int, replies: Iterable[Message]
        ) -> tuple[ArrayRecord | None, MetricRecord | None]:
            arrays, metrics = super().aggregate_train(server_round, replies)
            assert arrays is not None
            self.momentum = 0.9 * self.momentum + arrays.to_numpy_ndarrays()[0]
            return ArrayRecord([self.momentum]), metrics

        def save_state(self) -> RecordDict:
            return RecordDict({**super().save_state(), "momentum": ArrayRecord([self.momentum])})

        def load_state(self, state: RecordDict) -> None:
            super().load_state(state)
            self.momentum = state.array_records["momentum"].to_numpy_ndarrays()[0]

    whole = Federation(2).run(averaging_app(Momentum, rounds=4), training_app())
    assert interrupted(averaging_app(Momentum, rounds=4), [2], nodes=2).result == whole.result


def test_two_strategies_in_one_run_have_checkpoints_of_their_own() -> None:
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> Result:
        first = FedAvg().start(grid, ArrayRecord([np.zeros(5, dtype=np.float32)]), num_rounds=2)
        return FedAvg(fraction_evaluate=0.0).start(grid, first.arrays, num_rounds=3)

    whole = Federation(2).run(app, training_app())
    for behind in range(1, 6):
        run = interrupted(app, [behind], nodes=2)
        assert run.result == whole.result
        assert run.executions == whole.executions == 2 * 2 * 2 + 2 * 3


def test_a_run_that_is_finished_gives_its_result_again_without_asking_anybody() -> None:
    run = Federation(2).run(averaging_app(rounds=2), training_app())
    result, sent = run.result, run.messages
    run.execute()
    assert run.result == result
    assert run.messages == sent


def test_failed_rounds_are_counted_across_an_interruption() -> None:
    from fedq.apps import Error
    from fedq.apps.strategy.errors import NoUsableReplies

    federation = Federation(2)
    for name in federation.nodes:
        federation.fail(name, Error(1000, "no data"))
    run = federation.begin(averaging_app(rounds=9), training_app())
    with pytest.raises(Interrupted):
        run.execute(stop_after_checkpoint=2)
    with pytest.raises(NoUsableReplies, match="3 training rounds in a row"):
        run.execute()


def test_a_checkpoint_of_another_strategy_is_refused() -> None:
    class Other(FedAvg):
        pass

    context_kept = Federation(2).run(averaging_app(rounds=1), training_app()).server_context.state
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        for name, record in context_kept.items():
            context.state[name] = record
        Other().start(grid, ArrayRecord([np.zeros(5)]), num_rounds=1)

    with pytest.raises(CheckpointError, match=r"'strategy-1' cannot be continued by Other: it was written by 'FedAvg'"):
        Federation(2).run(app, training_app())


@pytest.mark.parametrize("damage", ["history", "round", "segments", "arrays"])
def test_a_damaged_checkpoint_is_refused(damage: str) -> None:
    state = Federation(2).run(averaging_app(rounds=1), training_app()).server_context.state
    if damage == "arrays":
        del state["strategy-1.arrays"]
    else:
        record = state["strategy-1"]
        assert isinstance(record, ConfigRecord)
        record[damage] = 7 if damage == "segments" else "nonsense"
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        for name, record in state.items():
            context.state[name] = record
        FedAvg().start(grid, ArrayRecord([np.zeros(5)]), num_rounds=1)

    with pytest.raises(CheckpointError, match="start the run anew"):
        Federation(2).run(app, training_app())


def test_a_late_checkpoint_sends_no_more_than_an_early_one() -> None:
    app = averaging_app(lambda: FedAvg(fraction_evaluate=0.0), rounds=1500)
    whole = Federation(2).run(app, training_app())
    assert whole.result is not None
    assert len(whole.result.train_metrics_clientapp) == len(whole.checkpoints) == 1500
    sent: list[int] = []
    known: set[str] = set()
    for state in whole.checkpoints:
        encoded = encode(decode(state), inline_limit=INLINE_LIMIT)
        new = {digest: blob.nbytes for digest, blob in encoded.blobs.items() if digest not in known}
        known.update(new)
        sent.append(len(encoded.data) + sum(new.values()))
    # A little grows: the names of the sealed segments, 110 bytes each.
    assert max(sent[750:]) <= max(sent[:750]) + 2 * SEGMENT / 16
    assert max(sent) < 2 * SEGMENT


def test_a_long_history_is_taken_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_log, "SEGMENT", 150)
    whole = Federation(2).run(averaging_app(rounds=12), training_app())
    state = whole.server_context.state
    assert len(state.array_records["strategy-1.history"]) > 2
    for behind in (1, 5, 6, 11):
        run = interrupted(averaging_app(rounds=12), [behind], nodes=2)
        assert run.result == whole.result
        assert run.server_context.state == state


def test_sampling_ignores_the_order_in_which_nodes_are_listed() -> None:
    nodes = [f"n{number}" for number in range(20)]
    assert Sampler(4).sample(nodes, 5) == Sampler(4).sample(nodes[::-1], 5)
    with pytest.raises(CheckpointError, match="no state of a sampler"):
        Sampler(4).state = "[1, 2]"
