"""FedAvg averages as replies arrive, and one bad reply is a counted failure and not the end of the run."""

from __future__ import annotations

import itertools
import logging
import weakref
from collections.abc import Callable, Iterable
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedq.apps import ArrayRecord, ConfigRecord, Context, Error, ErrorCode, Message, MetricRecord, RecordDict
from fedq.apps.errors import TooFewNodes
from fedq.apps.grid import Grid
from fedq.apps.strategy import FedAvg
from fedq.apps.strategy.errors import NoUsableReplies
from fedq.apps.testing import Federation, FederationRun
from tests.apps.federations import averaging_app, model_of, point, training_app


def rounds_of(run: FederationRun) -> list[dict[str, object]]:
    return [dict(event.data) for event in run.events if event.kind == "round"]


def failures_of(run: FederationRun) -> list[dict[str, object]]:
    return [dict(event.data) for event in run.events if event.kind == "reply-failed"]


# -- the average -------------------------------------------------------------------------------------------------------


def test_the_model_is_the_average_weighted_by_the_number_of_examples() -> None:
    run = Federation(3).run(averaging_app(rounds=1), training_app())
    expected = sum(np.float64(k + 1) * (np.float32(0.5) * point(k)) for k in range(3)) / 6
    assert model_of(run.result).dtype == np.float32
    np.testing.assert_allclose(model_of(run.result), expected, rtol=1e-6)


def test_metrics_are_averaged_with_the_same_weights_and_without_them() -> None:
    run = Federation(2).run(averaging_app(rounds=1), training_app())
    losses = [float(np.abs(np.float32(0.5) * point(k)).sum()) for k in range(2)]
    assert run.result.train_metrics_clientapp[1] == MetricRecord({"loss": (losses[0] + 2 * losses[1]) / 3})
    assert list(run.result.evaluate_metrics_clientapp[1]) == ["norm"]


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(6)))
def test_any_order_of_arrival_gives_the_same_bits(order: list[int]) -> None:
    delays = {f"node-{node}": float(place) for place, node in enumerate(order)}
    run = Federation(6, delays=delays).run(averaging_app(rounds=2), training_app())
    expected = Federation(6).run(averaging_app(rounds=2), training_app())
    assert run.result == expected.result
    assert model_of(run.result).tobytes() == model_of(expected.result).tobytes()


def test_a_node_that_is_held_back_does_not_keep_the_others_from_being_folded() -> None:
    strategy = FedAvg()
    folded: dict[str, int] = {}

    def on_message(message: Message) -> None:
        if message.metadata.message_type == "train":
            folded[message.metadata.dst_node_id] = strategy.folded

    federation = Federation(4, on_message=on_message)
    federation.hold("node-1")
    federation.at(60.0, lambda: federation.release("node-1"))
    federation.run(averaging_app(lambda: strategy, rounds=1), training_app())

    assert folded == {"node-0": 0, "node-2": 1, "node-3": 2, "node-1": 3}


def test_a_reply_is_let_go_before_the_next_one_is_waited_for() -> None:
    given: list[weakref.ref[Message]] = []
    held: list[int] = []

    class Watching(FedAvg):
        def aggregate_train(
            self, server_round: int, replies: Iterable[Message]
        ) -> tuple[ArrayRecord | None, MetricRecord | None]:
            def watched() -> Iterable[Message]:
                for reply in replies:
                    given.append(weakref.ref(reply))
                    passed_on = [reply]
                    del reply
                    yield passed_on.pop()
                    held.append(sum(ref() is not None for ref in given))

            return super().aggregate_train(server_round, watched())

    Federation(8).run(averaging_app(Watching, rounds=1), training_app())
    assert held == [0] * 8


def test_own_aggregation_of_metrics_gets_the_records_in_the_order_of_node_names() -> None:
    seen: list[list[float]] = []

    def worst(records: list[RecordDict], weighted_by: str) -> MetricRecord:
        assert not any(record.array_records for record in records)
        seen.append([float(record["metrics"][weighted_by]) for record in records])  # type: ignore[arg-type]
        return MetricRecord({"worst": max(seen[-1])})

    strategy = FedAvg(train_metrics_aggr_fn=worst, evaluate_metrics_aggr_fn=worst)
    run = Federation(3, delays={"node-0": 9.0}).run(averaging_app(lambda: strategy, rounds=1), training_app())

    assert seen == [[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]
    assert run.result.train_metrics_clientapp[1] == MetricRecord({"worst": 3.0})


def test_a_plain_list_of_replies_is_aggregated_too() -> None:
    def reply(value: float, examples: int) -> Message:
        content = RecordDict(
            {"arrays": ArrayRecord([np.array([value])]), "metrics": MetricRecord({"num-examples": examples})}
        )
        return Message(content, reply_to=Message(RecordDict(), "a", "train"))

    arrays, metrics = FedAvg().aggregate_train(1, [reply(1.0, 1), reply(3.0, 3)])
    assert arrays is not None
    np.testing.assert_array_equal(arrays.to_numpy_ndarrays()[0], [2.5])
    assert metrics == MetricRecord({})
    assert FedAvg().aggregate_train(1, []) == (None, None)


# -- bad replies -------------------------------------------------------------------------------------------------------

Change = Callable[[RecordDict, Context], RecordDict | None]


def only_node_1(change: Callable[[RecordDict], None]) -> Change:
    def changed(content: RecordDict, context: Context) -> RecordDict:
        if context.node_id == "node-1":
            change(content)
        return content

    return changed


def metric(name: str, value: object) -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        content["metrics"][name] = value  # type: ignore[assignment]

    return change


def item(name: str, value: ArrayRecord | MetricRecord | None) -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        if value is None:
            del content[name]
        else:
            content[name] = value

    return change


BAD: dict[str, tuple[Callable[[RecordDict], None], str]] = {
    "NaN weight": (metric("num-examples", float("nan")), "is nan, where a number above zero"),
    "infinite weight": (metric("num-examples", float("inf")), "is inf, where a number above zero"),
    "negative weight": (metric("num-examples", -3), "is -3, where a number above zero"),
    "zero examples": (metric("num-examples", 0), "is 0, where a number above zero"),
    "list of weights": (metric("num-examples", [1, 2]), "is a list"),
    "NaN metric": (metric("loss", float("nan")), "metric 'loss' is nan"),
    "infinite item": (metric("curve", [1.0, float("inf")]), "metric 'curve' is inf"),
    "no weight": (lambda content: content["metrics"].pop("num-examples"), "lacks 'num-examples'"),  # type: ignore[dict-item]
    "no metrics": (item("metrics", None), "0 MetricRecords instead of one"),
    "two metrics": (item("more", MetricRecord({"x": 1.0})), "2 MetricRecords instead of one"),
    "no arrays": (item("arrays", None), "0 ArrayRecords instead of one"),
    "two arrays": (item("more", ArrayRecord([np.ones(5)])), "2 ArrayRecords instead of one"),
    "other shape": (item("arrays", ArrayRecord([np.ones(6)])), r"shape (6,) instead of (5,)"),
    "other names": (item("arrays", ArrayRecord([np.ones(5), np.ones(5)])), "has '1'"),
    "NaN in arrays": (item("arrays", ArrayRecord([np.full(5, np.nan)])), "not finite"),
    "complex arrays": (item("arrays", ArrayRecord([np.ones(5, complex)])), "where real numbers were sent"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_reply_is_counted_logged_and_told_and_the_round_goes_on(
    what: str, caplog: pytest.LogCaptureFixture
) -> None:
    change, reason = BAD[what]
    with caplog.at_level(logging.WARNING):
        run = Federation(3).run(averaging_app(rounds=1), training_app(only_node_1(change)))

    (failure,) = failures_of(run)
    assert (failure["node"], failure["phase"], failure["round"], failure["code"]) == ("node-1", "train", 1, None)
    assert reason in str(failure["reason"])
    assert "node-1" in caplog.text
    (event,) = rounds_of(run)
    assert (event["replies"], event["failures"], event["unanswered"]) == (5, 1, 0)
    expected = (np.float64(1) * (np.float32(0.5) * point(0)) + np.float64(3) * (np.float32(0.5) * point(2))) / 4
    np.testing.assert_allclose(model_of(run.result), expected, rtol=1e-6)


def test_an_app_that_raises_on_one_node_is_a_counted_failure() -> None:
    federation = Federation(3)
    federation.fail("node-2", ValueError("disk full"), times=1)
    run = federation.run(averaging_app(rounds=2), training_app())

    (failure,) = failures_of(run)
    assert failure["code"] == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert failure["reason"] == "error 2: ValueError: disk full"
    assert [event["failures"] for event in rounds_of(run)] == [1, 0]


def test_bad_replies_do_not_make_the_result_depend_on_the_order() -> None:
    results = set()
    for order in itertools.permutations(range(3)):
        delays = {f"node-{node}": float(place) for place, node in enumerate(order)}
        change, _ = BAD["other shape"]
        run = Federation(3, delays=delays).run(averaging_app(rounds=1), training_app(only_node_1(change)))
        results.add(model_of(run.result).tobytes())
    assert len(results) == 1


def test_the_model_stays_when_no_reply_of_a_round_can_be_used() -> None:
    federation = Federation(2)
    federation.fail("node-0", Error(1000, "busy"), times=1)
    federation.fail("node-1", Error(1000, "busy"), times=1)
    run = federation.run(averaging_app(rounds=2), training_app())
    expected = Federation(2).run(averaging_app(rounds=1), training_app())
    np.testing.assert_array_equal(model_of(run.result), model_of(expected.result))
    assert [event["failures"] for event in rounds_of(run)] == [2, 0]


def test_the_run_fails_after_some_rounds_in_a_row_without_a_usable_reply() -> None:
    federation = Federation(2)
    for name in federation.nodes:
        federation.fail(name, Error(1000, "no data"))
    run = federation.begin(averaging_app(rounds=9), training_app())
    with pytest.raises(NoUsableReplies, match=r"3 training rounds in a row .*node-1: error 1000: no data") as caught:
        run.execute()
    assert caught.value.rounds == 3
    assert len(rounds_of(run)) == 2, "the third round did not end"


def test_the_run_fails_at_its_end_when_no_round_had_a_usable_reply() -> None:
    federation = Federation(2)
    for name in federation.nodes:
        federation.fail(name, Error(1000, "no data"))
    with pytest.raises(NoUsableReplies, match="no reply of the training round could be used"):
        federation.run(averaging_app(rounds=1), training_app())


def test_without_a_limit_the_model_is_simply_kept() -> None:
    federation = Federation(2)
    for name in federation.nodes:
        federation.fail(name, Error(1000, "no data"))
    run = federation.run(averaging_app(lambda: FedAvg(max_failed_rounds=None), rounds=4), training_app())
    np.testing.assert_array_equal(model_of(run.result), np.zeros(5))


# -- whom it asks ------------------------------------------------------------------------------------------------------


def sampled(run: FederationRun, message_type: str = "train") -> list[set[str]]:
    by_round: dict[str, set[str]] = {}
    for message in run.asked.values():
        if message.metadata.message_type == message_type:
            by_round.setdefault(message.metadata.group_id, set()).add(message.metadata.dst_node_id)
    return list(by_round.values())


@pytest.mark.parametrize(("fraction", "minimum", "expected"), [(0.5, 2, 5), (0.25, 2, 2), (0.1, 4, 4), (1.0, 2, 10)])
def test_a_fraction_of_the_nodes_is_asked_and_never_fewer_than_the_minimum(
    fraction: float, minimum: int, expected: int
) -> None:
    strategy = FedAvg(fraction_train=fraction, min_train_nodes=minimum, fraction_evaluate=0.3, seed=1)
    run = Federation(10).run(averaging_app(lambda: strategy, rounds=2), training_app())
    assert [len(nodes) for nodes in sampled(run)] == [expected, expected]
    assert [len(nodes) for nodes in sampled(run, "evaluate")] == [3, 3]


def test_a_fraction_of_zero_skips_the_phase() -> None:
    run = Federation(3).run(averaging_app(lambda: FedAvg(fraction_evaluate=0.0), rounds=2), training_app())
    assert run.messages == 6
    assert run.result.evaluate_metrics_clientapp == {}
    run = Federation(3).run(averaging_app(lambda: FedAvg(fraction_train=0.0), rounds=2), training_app())
    assert run.messages == 6
    np.testing.assert_array_equal(model_of(run.result), np.zeros(5))


def test_the_same_seed_samples_the_same_nodes_whether_given_or_in_the_config() -> None:
    def sample(seed: int | None, config: dict[str, object]) -> list[set[str]]:
        app = averaging_app(lambda: FedAvg(fraction_train=0.3, seed=seed), rounds=4)
        return sampled(Federation(10).run(app, training_app(), config=config))

    assert sample(5, {}) == sample(None, {"seed": 5}) == sample(5, {"seed": 6})
    assert sample(5, {}) != sample(6, {})


def test_what_was_asked_for_reaches_the_nodes() -> None:
    seen: list[tuple[str, object, object]] = []

    def on_message(message: Message) -> None:
        config = message.content.config_records["config"]
        seen.append((message.metadata.group_id, config["server-round"], config.get("lr")))

    app = averaging_app(rounds=2, train_config=ConfigRecord({"lr": 0.1}), evaluate_config=ConfigRecord({"lr": 0.2}))
    Federation(2, on_message=on_message).run(app, training_app())
    assert seen == [("1", 1, 0.1)] * 2 + [("1", 1, 0.2)] * 2 + [("2", 2, 0.1)] * 2 + [("2", 2, 0.2)] * 2


def test_the_model_is_evaluated_at_the_server_before_the_first_round_and_after_each() -> None:
    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        return (
            MetricRecord({"norm": float(np.linalg.norm(arrays.to_numpy_ndarrays()[0]))}) if server_round != 1 else None
        )

    run = Federation(2).run(averaging_app(rounds=2, evaluate_fn=evaluate), training_app())
    metrics = run.result.evaluate_metrics_serverapp
    assert list(metrics) == [0, 2]
    assert metrics[0] == MetricRecord({"norm": 0.0})
    (begin,) = [event.data for event in run.events if event.kind == "strategy"]
    assert begin == {"strategy": "FedAvg", "rounds": 2, "server": {"norm": 0.0}}
    assert [event["server"] for event in rounds_of(run)] == [None, dict(metrics[2])]


def test_too_few_nodes_is_an_error_after_the_time_given_and_told_meanwhile() -> None:
    federation = Federation(5, offline=["node-3", "node-4"])
    run = federation.begin(averaging_app(lambda: FedAvg(min_available_nodes=5)), training_app())
    with pytest.raises(TooFewNodes, match=r"3 of 5 nodes connected after 300 s"):
        run.execute()
    waiting = [event.data for event in run.events if event.kind == "waiting-for-nodes"]
    assert waiting == [{"connected": 3, "wanted": 5, "text": "3 of 5 nodes"}]
    assert federation.clock.now == 300.0


def test_nodes_that_come_in_time_are_waited_for() -> None:
    federation = Federation(3, offline=["node-1", "node-2"])
    federation.at(10.0, lambda: federation.set_online("node-1", True))
    federation.at(20.0, lambda: federation.set_online("node-2", True))
    run = federation.run(averaging_app(lambda: FedAvg(min_available_nodes=3), rounds=1), training_app())
    texts = [event.data["text"] for event in run.events if event.kind == "waiting-for-nodes"]
    assert texts == ["1 of 3 nodes", "2 of 3 nodes"]
    assert len(sampled(run)[0]) == 3


# -- whom it waits for -------------------------------------------------------------------------------------------------


def test_with_min_replies_the_rest_is_cancelled_after_the_grace_period() -> None:
    federation = Federation(4, delays={"node-1": 2.0, "node-2": 4.0, "node-3": 100.0})
    strategy = FedAvg(min_replies=2, grace=3.0, fraction_evaluate=0.0)
    run = federation.run(averaging_app(lambda: strategy, rounds=1), training_app())

    (event,) = rounds_of(run)
    assert (event["replies"], event["failures"], event["unanswered"]) == (3, 0, 1)
    assert federation.clock.now == 5.0
    assert run.executions == 3, "the node that was too slow never worked on it"


def test_an_error_does_not_count_towards_min_replies() -> None:
    federation = Federation(3, delays={"node-2": 50.0})
    federation.fail("node-0", Error(1000, "busy"))
    strategy = FedAvg(min_replies=2, fraction_evaluate=0.0)
    run = federation.run(averaging_app(lambda: strategy, rounds=1), training_app())
    (event,) = rounds_of(run)
    assert (event["replies"], event["failures"], event["unanswered"]) == (2, 1, 0)


def test_after_the_timeout_the_round_goes_on_without_those_that_are_missing() -> None:
    federation = Federation(3, delays={"node-2": 100.0})
    run = federation.run(averaging_app(lambda: FedAvg(fraction_evaluate=0.0), rounds=2, timeout=30), training_app())
    assert [event["unanswered"] for event in rounds_of(run)] == [1, 1]
    assert federation.clock.now == 60.0
    assert run.executions == 4


def test_waiting_samples_nodes_that_are_offline_and_failing_does_not() -> None:
    for on_offline, expected in (("wait", 3), ("fail", 2)):
        federation = Federation(3, offline=["node-1"])
        federation.at(5.0, lambda federation=federation: federation.set_online("node-1", True))  # type: ignore[misc]
        strategy = FedAvg(on_offline=on_offline, fraction_evaluate=0.0)  # type: ignore[arg-type]
        run = federation.run(averaging_app(lambda strategy=strategy: strategy, rounds=1), training_app())  # type: ignore[misc]
        assert len(sampled(run)[0]) == expected
        assert rounds_of(run)[0]["failures"] == 0
        told = [event.data["nodes"] for event in run.events if event.kind == "waiting-for-offline"]
        assert told == ([["node-1"]] if on_offline == "wait" else [])


def test_nodes_finish_their_work_also_when_the_strategy_does_not_look_at_the_replies() -> None:
    class Blind(FedAvg):
        def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
            return None

    federation = Federation(3, delays={"node-2": 5.0})
    federation.fail("node-0", Error(1000, "busy"))
    run = federation.run(averaging_app(lambda: Blind(fraction_train=0.0), rounds=2), training_app())
    assert [(event["replies"], event["failures"], event["unanswered"]) for event in rounds_of(run)] == [(2, 1, 0)] * 2


@pytest.mark.parametrize(
    "wrong",
    [{"fraction_train": -0.1}, {"fraction_evaluate": 1.5}, {"min_replies": 0}, {"on_offline": "ignore"}],
)
def test_arguments_that_make_no_sense_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FedAvg(**wrong)  # type: ignore[arg-type]


def test_a_strategy_that_looks_at_the_replies_twice_works() -> None:
    class Twice(FedAvg):
        def configure_train(
            self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
        ) -> Iterable[Message]:
            yield from super().configure_train(server_round, arrays, config, grid)

        def aggregate_train(
            self, server_round: int, replies: Iterable[Message]
        ) -> tuple[ArrayRecord | None, MetricRecord | None]:
            assert replies
            assert len([reply for reply in replies if reply.has_content()]) == 3
            assert len(list(replies)) == 3
            return super().aggregate_train(server_round, replies)

    once = Federation(3).run(averaging_app(rounds=2), training_app())
    twice = Federation(3).run(averaging_app(Twice, rounds=2), training_app())
    assert once.result == twice.result


def reply_of(node: str, content: RecordDict) -> Message:
    return Message(content, reply_to=Message(RecordDict(), node, "train"))


contents = st.builds(
    lambda values, weight, loss: RecordDict(
        {
            "arrays": ArrayRecord([np.array(values, dtype=np.float32)]),
            "metrics": MetricRecord({"num-examples": weight, "loss": loss}),
        }
    ),
    st.lists(st.floats(width=32), min_size=3, max_size=4),
    st.one_of(st.integers(min_value=-1, max_value=2**40), st.floats()),
    st.floats(),
)


@settings(deadline=None)
@given(st.lists(contents, min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_whatever_nodes_reply_the_order_changes_neither_the_model_nor_what_failed(
    replied: list[RecordDict], random: Random
) -> None:
    def outcome(replies: list[Message]) -> tuple[object, object, set[str]]:
        strategy = FedAvg()
        strategy._sent = ArrayRecord([np.zeros(3, dtype=np.float32)])
        arrays, metrics = strategy.aggregate_train(1, replies)
        model = None if arrays is None else arrays.to_numpy_ndarrays()[0].tobytes()
        return model, metrics, {failure.node_id for failure in strategy.failures}

    replies = [reply_of(f"node-{number}", content) for number, content in enumerate(replied)]
    expected = outcome(replies)
    random.shuffle(replies)
    assert outcome(replies) == expected
