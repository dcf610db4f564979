"""What works in the federation of a process works deployed: Contexts, errors, the wire format, determinism."""

from __future__ import annotations

import numpy as np
import pytest

import fedq.apps.testing as testing
from fedq.apps import (
    ArrayRecord,
    ClientApp,
    ConfigRecord,
    Context,
    ErrorCode,
    Grid,
    Message,
    MetricRecord,
    RecordDict,
    ServerApp,
)
from fedq.apps.errors import ConfigError, FedqError
from fedq.apps.testing import Clock, Federation, ask
from tests.apps.federations import averaging_app, training_app


def sending(*rounds: str) -> ServerApp:
    """A ServerApp that sends a train message to all nodes for each of the given groups."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        for group in rounds:
            messages = [Message(RecordDict(), node, "train", group_id=group) for node in grid.get_node_ids()]
            grid.send_and_receive(messages)

    return app


def counting(fails_at: str = "never") -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        count = context.state.metric_records.get("count", MetricRecord({"n": 0}))
        context.state["count"] = MetricRecord({"n": int(count["n"]) + 1})  # type: ignore[arg-type]
        if message.metadata.group_id == fails_at:
            raise RuntimeError("in the middle")
        return Message(RecordDict(), reply_to=message)

    return app


def counts(contexts: dict[str, Context]) -> list[object]:
    return [context.state.metric_records["count"]["n"] for context in contexts.values()]


def test_nodes_are_numbered_or_named_and_know_their_partition() -> None:
    assert list(Federation(2).nodes) == ["node-0", "node-1"]
    assert list(Federation(11).nodes)[:2] == ["node-00", "node-01"]
    run = Federation(["b", "a"]).run(sending("1"), counting())
    assert {name: context.node_config for name, context in run.contexts.items()} == {
        "b": {"partition-id": 0, "num-partitions": 2},
        "a": {"partition-id": 1, "num-partitions": 2},
    }
    run = Federation({"a": {"path": "/data"}}).run(sending("1"), counting())
    assert run.contexts["a"].node_config == {"path": "/data"}


def test_a_node_finds_the_context_that_its_last_message_left() -> None:
    assert counts(Federation(2).run(sending("1", "2", "3"), counting()).contexts) == [3, 3]


def test_a_message_that_ends_in_an_error_leaves_the_context_as_it_was() -> None:
    run = Federation(2).run(sending("1", "2", "3"), counting(fails_at="2"))
    assert counts(run.contexts) == [2, 2]
    assert {error.code for error in run.errors.values()} == {ErrorCode.CLIENT_APP_RAISED_EXCEPTION}
    assert all("in the middle" in (error.traceback or "") for error in run.errors.values())


def test_each_run_has_contexts_of_its_own() -> None:
    federation = Federation(2)
    first = federation.run(sending("1", "2"), counting())
    second = federation.run(sending("1"), counting())
    assert (first.run_id, second.run_id) == (1, 2)
    assert (counts(first.contexts), counts(second.contexts)) == ([2, 2], [1, 1])


def test_what_a_node_gets_cannot_be_changed_from_outside() -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        message.content["seen"] = ConfigRecord({"by": context.node_id})
        (array,) = message.content.array_records["arrays"].to_numpy_ndarrays()
        array += 1
        return Message(RecordDict({"arrays": ArrayRecord([array])}), reply_to=message)

    sent = RecordDict({"arrays": ArrayRecord([np.zeros(2)])})
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        replies = grid.send_and_receive([Message(sent, node, "train") for node in grid.get_node_ids()])
        for reply in replies:
            np.testing.assert_array_equal(reply.content.array_records["arrays"].to_numpy_ndarrays()[0], np.ones(2))

    Federation(3).run(server, app)
    assert list(sent) == ["arrays"]
    np.testing.assert_array_equal(sent.array_records["arrays"].to_numpy_ndarrays()[0], np.zeros(2))


def test_what_cannot_travel_is_an_error_here_too() -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(RecordDict({"metrics": MetricRecord({"n": 2**70})}), reply_to=message)

    with pytest.raises(FedqError):
        ask(app, RecordDict({"metrics": MetricRecord({"n": 2**70})}))
    reply = ask(app, RecordDict())
    assert reply.error.code == ErrorCode.INVALID_REPLY
    run = Federation(1).run(sending("1"), app)
    assert [error.code for error in run.errors.values()] == [ErrorCode.INVALID_REPLY]


def test_a_config_that_no_deployment_would_take_is_refused() -> None:
    with pytest.raises(ConfigError):
        Federation(1).begin(sending(), counting(), config={"layers": [1, 2]})
    with pytest.raises(ConfigError):
        Federation({"a": {"layers": {}}})  # type: ignore[dict-item]


def test_what_the_server_app_raises_is_raised_in_the_test() -> None:
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        Federation(1).run(app, ClientApp())


def test_two_federations_give_the_same_bits_and_events() -> None:
    def once() -> tuple[object, object]:
        run = Federation(5, delays={"node-3": 2.0}).run(averaging_app(rounds=3), training_app(), {"seed": 1})
        events = [(e.kind, e.time, {k: v for k, v in e.data.items() if k != "seconds"}) for e in run.events]
        return run.result, events

    assert once() == once()


def test_messages_to_one_node_are_answered_one_after_the_other() -> None:
    federation = Federation(2, delays={"node-0": 10.0})
    times: list[tuple[str, float]] = []
    federation.on_message = lambda message: times.append((message.metadata.group_id, federation.clock.now))
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        grid.send_and_receive([Message(RecordDict(), "node-0", "train", group_id=str(k)) for k in range(3)])

    federation.run(server, counting())
    assert times == [("0", 10.0), ("1", 20.0), ("2", 30.0)]


def test_delays_may_depend_on_the_message() -> None:
    federation = Federation(2, delays=lambda message: 7.0 if message.metadata.group_id == "2" else 1.0)
    federation.run(sending("1", "2"), counting())
    assert federation.clock.now == 8.0


def test_a_single_function_is_asked_without_any_server_app() -> None:
    context = Context(run_id=1, node_id="clinic", node_config={}, state=RecordDict(), run_config={})
    for number in (1, 2):
        assert ask(counting(), RecordDict(), context=context).has_content()
        assert counts({"clinic": context}) == [number]
    reply = ask(training_app(), RecordDict({"arrays": ArrayRecord([np.zeros(5)])}), node_config={"partition-id": 3})
    assert reply.content.metric_records["metrics"]["num-examples"] == 4


def test_naming_a_node_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ValueError, match="no node 'x'; the nodes are: node-0, node-1"):
        Federation(2, offline=["x"])
    with pytest.raises(ValueError, match="no node 'x'"):
        Federation(2, delays={"x": 1.0})
    with pytest.raises(ValueError, match="no node 'x'"):
        Federation(2).hold("x")


def test_the_clock_does_what_is_planned_on_the_way() -> None:
    clock, seen = Clock(), list[tuple[str, float]]()
    clock.at(5.0, lambda: seen.append(("late", clock.now)))
    clock.at(2.0, lambda: seen.append(("early", clock.now)))
    clock.at(2.0, lambda: clock.at(3.0, lambda: seen.append(("added", clock.now))))
    assert clock.next_action == 2.0
    clock.advance(4.0)
    assert (clock.now, seen) == (4.0, [("early", 2.0), ("added", 3.0)])
    clock.advance_to(1.0)
    assert clock.now == 4.0
    with pytest.raises(ValueError, match="time does not go back"):
        clock.advance(-1.0)


def test_the_public_names_are_these() -> None:
    assert sorted(testing.__all__) == [
        "Clock",
        "Event",
        "Federation",
        "FederationRun",
        "FederationStuck",
        "Interrupted",
        "ask",
    ]


def test_replies_that_a_checkpoint_left_for_later_come_again_in_the_order_in_which_they_came() -> None:
    # `tests/relay/link/test_grid_resume.py` has the same for the relay.
    order: list[list[str]] = []
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        if not context.state:
            ids = grid.push_messages([Message(RecordDict(), node, "train") for node in grid.get_node_ids()])
            list(grid.stream(message_ids=ids[2:]))
            list(grid.stream(message_ids=ids))  # those that were had already come first
            context.state["sent"] = ConfigRecord({"ids": ids})
            context.save(folded=ids[:1])
        ids = [str(message_id) for message_id in context.state.config_records["sent"]["ids"]]  # type: ignore[union-attr]
        order.append([reply.metadata.src_node_id for reply in grid.stream(message_ids=ids[1:])])

    run = Federation(3, delays={"node-0": 1.0, "node-1": 3.0, "node-2": 5.0}).begin(app, counting())
    for _ in range(2):
        run.execute()
    assert order == [["node-2", "node-1"]] * 2
