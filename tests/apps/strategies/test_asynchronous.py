"""FedBuff and FedAsync: the papers' updates on small numbers, what arrives when, failures, and deaths in mid-round."""

from __future__ import annotations

import json
from itertools import permutations
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from fedq.apps import ArrayRecord, ClientApp, Context, Grid, Message, MetricRecord, RecordDict, ServerApp
from fedq.apps.mod import CompressionMod
from fedq.apps.strategy import (
    Asynchronous,
    DifferentialPrivacyServerSideFixedClipping,
    FedAsync,
    FedBuff,
    NoUsableReplies,
    constant_staleness,
    hinge_staleness,
    polynomial_staleness,
)
from fedq.apps.testing import Federation, FederationRun, Interrupted
from tests.apps.strategies.scripted import Reply, record, scripted_app

ROOT_HALF = 2**-0.5


class Killed(BaseException):
    """Stands for the end of the process."""


def adding(steps: dict[str, float]) -> ClientApp:
    """A node adds its step to the model that it was sent."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        (array,) = message.content.array_records["arrays"].to_numpy_ndarrays()
        metrics = MetricRecord({"num-examples": 1 + int(context.node_config["partition-id"]), "loss": 0.5})
        return Message(
            RecordDict({"arrays": ArrayRecord([array + steps[context.node_id]]), "metrics": metrics}), reply_to=message
        )

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        (array,) = message.content.array_records["arrays"].to_numpy_ndarrays()
        return Message(
            RecordDict({"metrics": MetricRecord({"num-examples": 1, "first": float(array[0])})}), reply_to=message
        )

    return app


def server(make: Any, rounds: int, after: dict[str, int] | None = None, timeout: float = 1000.0) -> ServerApp:
    """Starts a new strategy each time; ``after["take"]`` is the number of the take after which it is killed, once."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = make()
        if after is not None:
            take = strategy.take

            def dying(*args: Any) -> None:
                take(*args)
                after["take"] = after.get("take", 0) - 1
                if after["take"] == 0:
                    raise Killed

            strategy.take = dying
        strategy.start(grid, ArrayRecord([np.zeros(2)]), num_rounds=rounds, timeout=timeout)

    return app


STEPS = {"node-0": 1.0, "node-1": 10.0, "node-2": 100.0}
DELAYS = {"node-0": 2.0, "node-1": 3.0, "node-2": 7.0}


def model(run: FederationRun) -> float:
    first, second = run.result.arrays.to_numpy_ndarrays()[0]
    assert first == second
    return float(first)


def trained(make: Any, rounds: int, delays: dict[str, float] | None = None, **more: Any) -> FederationRun:
    return Federation(3, delays=DELAYS if delays is None else delays).run(server(make, rounds, **more), adding(STEPS))


def rounds_of(run: FederationRun) -> list[dict[str, Any]]:
    return [dict(event.data) for event in run.events if event.kind == "round"]


# -- the papers' updates -----------------------------------------------------------------------------------------------


def test_fedbuff_takes_a_step_along_the_mean_of_its_buffer_with_stale_updates_for_less() -> None:
    # Replies at 2 (node-0), 3 (node-1) | 4 (node-0; asked at 2, before the update), 6 (node-1, asked at 3, after it).
    run = trained(lambda: FedBuff(2, server_learning_rate=0.5, fraction_evaluate=0.0), 2)
    first = 0.5 * (1.0 + 10.0) / 2
    second = first + 0.5 * (ROOT_HALF * 1.0 + 10.0) / 2
    assert model(run) == pytest.approx(second, abs=1e-12)
    assert [(told["round"], told["replies"], told["staleness"]) for told in rounds_of(run)] == [
        (1, 2, 0.0),
        (2, 2, 0.5),
    ]


def test_fedbuff_may_weigh_by_the_number_of_examples() -> None:
    run = trained(lambda: FedBuff(2, by_examples=True, fraction_evaluate=0.0), 1)
    assert model(run) == pytest.approx((1 * 1.0 + 2 * 10.0) / 3, abs=1e-12)


def test_fedasync_mixes_each_reply_into_the_model() -> None:
    run = trained(lambda: FedAsync(0.5, staleness=polynomial_staleness(1.0), fraction_evaluate=0.0), 3)
    x1 = 0.5 * 1.0  # node-0 at 2, fresh
    x2 = (1 - 0.25) * x1 + 0.25 * 10.0  # node-1 at 3, of version 0: staleness 1
    x3 = (1 - 0.25) * x2 + 0.25 * (x1 + 1.0)  # node-0 at 4, of version 1: staleness 1
    assert model(run) == pytest.approx(x3, abs=1e-12)


def test_the_staleness_functions_are_those_of_the_papers() -> None:
    assert [constant_staleness()(n) for n in (0, 9)] == [1.0, 1.0]
    assert polynomial_staleness()(3) == 0.5
    assert [hinge_staleness(10, 4)(n) for n in (0, 4, 5)] == [1.0, 1.0, 1 / 11]


@pytest.mark.parametrize("dtype", ["float32", "complex64", ml_dtypes.bfloat16], ids=str)
@pytest.mark.parametrize("make", [lambda: FedBuff(2, fraction_evaluate=0.0), FedAsync], ids=["FedBuff", "FedAsync"])
def test_a_value_beyond_the_dtype_of_the_model_does_not_make_it_infinite(make: Any, dtype: Any) -> None:
    # One reply of a node is in double precision, and too large for what comes after it.
    sent, app, results = np.zeros(2, dtype), ServerApp(), []

    def reply(server_round: int, node: int) -> Reply:
        huge = np.full(2, 1e300).astype(np.complex128 if sent.dtype.kind == "c" else np.float64)
        return Reply({"0": huge if (server_round, node) == (1, 0) else np.ones(2, dtype)})

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        results.append(make().start(grid, record({"0": sent}), num_rounds=6).arrays["0"].numpy())

    Federation(3, delays=DELAYS).run(app, scripted_app([[reply(at, node) for node in range(3)] for at in range(1, 7)]))
    assert np.isfinite(results[0]).all()
    assert (np.abs(results[0]) > 1e200).all(), "the large reply was not in it"


# -- order -------------------------------------------------------------------------------------------------------------


def test_within_a_buffer_any_order_of_arrival_gives_the_same_bits() -> None:
    # Added up in float64, in the order of arrival, these give 0 or 1.
    steps = {"node-0": 1e16, "node-1": 1.0, "node-2": -1e16}
    found = set()
    for order in permutations(steps):
        delays = {name: 1.0 + place / 3 for place, name in enumerate(order)}
        app = server(lambda: FedBuff(3, fraction_evaluate=0.0), 1)
        found.add(model(Federation(3, delays=delays).run(app, adding(steps))))
    assert found == {1 / 3}


@pytest.mark.parametrize("order", list(permutations(STEPS)), ids="-".join)
def test_fedasync_makes_of_any_order_of_arrival_what_its_rule_makes_of_it(order: tuple[str, ...]) -> None:
    # All three are asked at once, so that staleness grows with the place in the order: 0, 1, 2.
    delays = {name: 1.0 + place / 3 for place, name in enumerate(order)}
    run = trained(lambda: FedAsync(0.5, staleness=polynomial_staleness(1.0), fraction_evaluate=0.0), 3, delays)
    expected = 0.0
    for staleness, name in enumerate(order):
        share = 0.5 / (1 + staleness)
        expected = (1 - share) * expected + share * STEPS[name]
    assert model(run) == pytest.approx(expected, abs=1e-12)


def test_which_replies_share_a_buffer_depends_on_when_they_arrive() -> None:
    quick = trained(lambda: FedAsync(0.5, fraction_evaluate=0.0), 3)
    other = trained(lambda: FedAsync(0.5, fraction_evaluate=0.0), 3, delays={"node-0": 9.0})
    assert model(quick) != model(other)


# -- failures ----------------------------------------------------------------------------------------------------------


def test_a_node_that_fails_rests_and_the_others_go_on() -> None:
    federation = Federation(3, delays=DELAYS)
    federation.fail("node-0", ValueError("no data"))
    run = federation.run(server(lambda: FedBuff(2, fraction_evaluate=0.0), 3), adding(STEPS))
    assert [told["replies"] for told in rounds_of(run)] == [2, 2, 2]
    assert all(told["failures"] <= 1 for told in rounds_of(run))
    assert rounds_of(run)[0]["failures"] == 1


def test_when_every_node_fails_the_run_fails() -> None:
    federation = Federation(3)
    for name in STEPS:
        federation.fail(name, ValueError("no data"))
    with pytest.raises(NoUsableReplies, match="no data"):
        federation.run(server(lambda: FedBuff(2), 9), adding(STEPS))


@pytest.mark.parametrize("on_offline", ["wait", "fail"])
def test_a_node_that_goes_away_holds_nobody_up(on_offline: Any) -> None:
    federation = Federation(3, delays=DELAYS)
    federation.at(1.0, lambda: federation.set_online("node-1", False))
    make = lambda: FedBuff(2, on_offline=on_offline, fraction_evaluate=0.0)  # noqa: E731
    run = federation.run(server(make, 12, timeout=20.0), adding(STEPS))
    assert len(rounds_of(run)) == 12
    assert any(event.kind == "reply-failed" and event.data["node"] == "node-1" for event in run.events)


def test_a_wrapper_that_needs_rounds_is_refused() -> None:
    def make() -> Any:
        return DifferentialPrivacyServerSideFixedClipping(FedBuff(2), 0.1, 1.0, 3)

    with pytest.raises(Exception, match="trains asynchronously"):
        Federation(3).run(server(make, 1), adding(STEPS))


# -- evaluation --------------------------------------------------------------------------------------------------------


def test_nodes_evaluate_every_so_many_rounds_while_training_goes_on() -> None:
    run = trained(lambda: FedBuff(2, evaluate_every=2), 4)
    assert sorted(run.result.evaluate_metrics_clientapp) == [2, 4]
    again = [told for told in rounds_of(run) if told["evaluate"] is not None]
    assert [told["round"] for told in again] == [2, 4]
    assert len(rounds_of(run)) == 6


# -- deaths ------------------------------------------------------------------------------------------------------------

MAKERS = {
    "FedBuff": lambda: FedBuff(3, evaluate_every=2),
    "FedBuff-two-at-work": lambda: FedBuff(3, concurrency=2),
    "FedAsync": lambda: FedAsync(0.5),
}


def same(run: FederationRun, whole: FederationRun) -> None:
    assert run.result == whole.result
    assert run.executions == whole.executions, "a message was sent twice"

    def told(of: FederationRun) -> Any:
        return [(e.kind, {k: v for k, v in e.data.items() if k != "seconds"}) for e in of.events]

    assert told(run) == told(whole)


@pytest.mark.parametrize("name", MAKERS)
def test_killed_behind_any_checkpoint_it_goes_on_as_if_it_had_not_been(name: str) -> None:
    whole = trained(MAKERS[name], 4)
    for checkpoint in range(1, len(whole.checkpoints) + 1):
        run = Federation(3, delays=DELAYS).begin(server(MAKERS[name], 4), adding(STEPS))
        with pytest.raises(Interrupted):
            run.execute(stop_after_checkpoint=checkpoint)
        same(run.execute(), whole)


@pytest.mark.parametrize("name", MAKERS)
def test_killed_after_any_reply_it_goes_on_as_if_it_had_not_been(name: str) -> None:
    whole = trained(MAKERS[name], 4)
    for place in range(1, 13 if name != "FedAsync" else 5):
        run = Federation(3, delays=DELAYS).begin(server(MAKERS[name], 4, {"take": place}), adding(STEPS))
        with pytest.raises(Killed):
            run.execute()
        same(run.execute(), whole)


def with_a_buffer_that_stays_short() -> Federation:
    """After one good reply all fail, twice, so that the first round fails while the buffer holds that reply."""
    federation = Federation(3, delays=DELAYS)
    for name in ("node-1", "node-2"):
        federation.fail(name, ValueError("no data"), times=2)
    federation.at(2.5, lambda: federation.fail("node-0", ValueError("no data"), times=2))
    return federation


def test_it_goes_on_with_a_buffer_that_was_filled_in_part() -> None:
    make = lambda: FedBuff(3, max_failed_rounds=None, fraction_evaluate=0.0)  # noqa: E731
    whole = with_a_buffer_that_stays_short().run(server(make, 3), adding(STEPS))
    assert [(told["round"], told["replies"]) for told in rounds_of(whole)] == [(1, 1), (2, 3), (3, 3)]

    run = with_a_buffer_that_stays_short().begin(server(make, 3), adding(STEPS))
    with pytest.raises(Interrupted):
        run.execute(stop_after_checkpoint=1)
    kept = run.server_context.state.config_records["strategy-1.state.in-flight"]["state"]
    assert len(json.loads(str(kept))["buffered"]) == 1
    same(run.execute(), whole)


def test_what_no_update_took_is_not_in_the_first_update_of_another_start() -> None:
    results: list[float] = []
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = FedBuff(3, max_failed_rounds=None, fraction_evaluate=0.0)
        for _ in range(2):
            result = strategy.start(grid, ArrayRecord([np.zeros(2)]), num_rounds=1)
            results.append(float(result.arrays.to_numpy_ndarrays()[0][0]))

    run = with_a_buffer_that_stays_short().run(app, adding(STEPS))
    assert [told["replies"] for told in rounds_of(run)] == [1, 3]
    # Nothing, then node-0 after two seconds, node-1 after three and node-0 again after four.
    assert results == [0.0, pytest.approx((1.0 + 10.0 + 1.0) / 3, abs=1e-12)]


def test_replies_of_the_largest_elements_are_read_against_the_model_that_their_node_had() -> None:
    whole = trained(lambda: FedBuff(2, fraction_evaluate=0.0), 4)
    app = ClientApp(mods=[CompressionMod(top_k=1.0)])
    app.train()(lambda message, context: adding(STEPS)(message, context))
    run = Federation(3, delays=DELAYS).run(server(lambda: FedBuff(2, fraction_evaluate=0.0), 4), app)
    assert model(run) == pytest.approx(model(whole), rel=1e-6)
    assert any(told["staleness"] for told in rounds_of(run))


def test_the_checkpoint_holds_no_model_that_nobody_goes_back_to() -> None:
    run = trained(lambda: FedAsync(0.5), 12)
    versions = [name for name in run.server_context.state if ".version-" in name]
    assert versions == []
    assert issubclass(FedAsync, Asynchronous)
