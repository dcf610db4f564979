"""The Grid sends messages, gives replies as they arrive, and ends where it was told to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fedq.apps import DEFAULT_TTL, ClientApp, Context, ErrorCode, Grid, Message, MetricRecord, RecordDict, ServerApp
from fedq.apps.errors import AppError
from fedq.apps.testing import Federation, FederationRun, FederationStuck

echo = ClientApp()


@echo.query()
def query(message: Message, context: Context) -> Message:
    return Message(RecordDict({"echo": MetricRecord({"of": len(context.node_id)})}), reply_to=message)


def on(federation: Federation, main: Callable[[Grid], Any], app: ClientApp = echo) -> FederationRun:
    server = ServerApp()
    server.main()(lambda grid, context: main(grid))
    return federation.run(server, app)


def messages_to(*nodes: str, ttl: float | None = None) -> list[Message]:
    return [Message(RecordDict(), node, "query", ttl=ttl) for node in nodes]


def sources(replies: Any) -> list[str]:
    return [reply.metadata.src_node_id for reply in replies]


def test_replies_come_in_the_order_of_arrival() -> None:
    seen: list[str] = []
    delays = {"node-0": 3.0, "node-1": 1.0, "node-2": 2.0}
    on(
        Federation(3, delays=delays),
        lambda grid: seen.extend(sources(grid.stream(messages_to("node-0", "node-1", "node-2")))),
    )
    assert seen == ["node-1", "node-2", "node-0"]


def test_a_reply_is_given_out_before_the_next_one_has_arrived() -> None:
    federation = Federation(2, delays={"node-1": 10.0})

    def main(grid: Grid) -> None:
        replies = iter(grid.stream(messages_to("node-0", "node-1")))
        next(replies)
        assert federation.clock.now == 0.0
        next(replies)
        assert federation.clock.now == 10.0

    on(federation, main)


def test_send_and_receive_returns_a_list() -> None:
    def main(grid: Grid) -> None:
        replies = grid.send_and_receive(messages_to("node-0", "node-1"))
        assert isinstance(replies, list)
        assert [reply.metadata.reply_to_message_id for reply in replies] == list(replies_of)

    replies_of: list[str] = []

    class Watch:
        def __call__(self, message: Message) -> None:
            replies_of.append(message.metadata.message_id)

    on(Federation(2, on_message=Watch()), main)


def test_a_reply_says_what_it_answers_and_whose_it_is() -> None:
    def main(grid: Grid) -> None:
        (message_id,) = grid.push_messages([Message(RecordDict(), "node-1", "query", group_id="7")])
        (reply,) = grid.stream(message_ids=[message_id])
        metadata = reply.metadata
        assert (metadata.run_id, metadata.group_id, metadata.message_type) == (grid.run_id, "7", "query")
        assert (metadata.src_node_id, metadata.dst_node_id) == ("node-1", "")
        assert metadata.reply_to_message_id == message_id
        assert metadata.message_id not in ("", message_id)

    on(Federation(2), main)


def test_pulling_never_waits_and_gives_the_same_again() -> None:
    federation = Federation(2, delays={"node-1": 5.0})

    def main(grid: Grid) -> None:
        ids = grid.push_messages(messages_to("node-0", "node-1"))
        assert grid.pull_messages(ids) == []
        replies = grid.stream(message_ids=ids)
        next(iter(replies))
        assert sources(grid.pull_messages(ids[:1])) == ["node-0"]
        assert federation.clock.now == 0.0
        assert sources(grid.pull_messages(ids)) == ["node-0"]

    on(federation, main)


@pytest.mark.parametrize("all_at_once", [False, True])
def test_who_pulls_again_and_again_gets_all_replies(all_at_once: bool) -> None:
    federation = Federation(3, delays={"node-1": 5.0, "node-2": 2.0})

    def main(grid: Grid) -> None:
        ids = grid.push_messages(messages_to(*federation.nodes), on_offline="wait")
        waiting, times = list(ids), []
        while waiting:
            for reply in grid.pull_messages(ids if all_at_once else waiting):
                if reply.metadata.reply_to_message_id in waiting:
                    waiting.remove(reply.metadata.reply_to_message_id)
                    times.append((reply.metadata.src_node_id, federation.clock.now))
        assert times == [("node-0", 0.0), ("node-2", 2.0), ("node-1", 5.0)]

    on(federation, main)


def test_who_pulls_again_and_again_learns_that_a_message_has_expired() -> None:
    federation = Federation(1, offline=["node-0"])

    def main(grid: Grid) -> None:
        ids = grid.push_messages([Message(RecordDict(), "node-0", "query", ttl=60.0)])
        while not (replies := grid.pull_messages(ids)):
            pass
        assert replies[0].error.code == ErrorCode.MESSAGE_EXPIRED
        assert federation.clock.now == 60.0

    on(federation, main)


def test_after_the_timeout_the_rest_stays_valid() -> None:
    def main(grid: Grid) -> None:
        replies = grid.stream(messages_to("node-0", "node-1"), timeout=10)
        assert sources(replies) == ["node-0"]
        assert replies.unanswered == (replies.message_ids[1],)
        assert sources(grid.stream(message_ids=replies.unanswered)) == ["node-1"]

    run = on(Federation(2, delays={"node-1": 50.0}), main)
    assert run.errors == {}


def test_after_k_replies_and_the_grace_period_the_rest_is_cancelled() -> None:
    federation = Federation(4, delays={"node-1": 1.0, "node-2": 2.0, "node-3": 9.0})

    def main(grid: Grid) -> None:
        replies = grid.stream(messages_to(*federation.nodes), min_replies=2, grace=1.5)
        assert sources(replies) == ["node-0", "node-1", "node-2"]
        (late,) = grid.pull_messages(replies.unanswered)
        assert late.error.code == ErrorCode.CANCELLED

    on(federation, main)
    assert federation.clock.now == 2.5


def test_without_grace_the_first_k_are_all() -> None:
    federation = Federation(4)

    def main(grid: Grid) -> None:
        assert len(list(grid.stream(messages_to(*federation.nodes), min_replies=3))) == 3

    assert on(federation, main).executions == 3


def test_what_is_cancelled_is_answered_by_an_error_and_not_executed() -> None:
    def main(grid: Grid) -> None:
        ids = grid.push_messages(messages_to("node-0", "node-1"))
        grid.cancel([ids[1]])
        first, second = grid.stream(message_ids=ids)
        assert first.error.code == ErrorCode.CANCELLED
        assert "cancelled" in (first.error.reason or "")
        assert second.metadata.src_node_id == "node-0"
        grid.cancel(ids)
        assert grid.pull_messages([ids[0]])[0].has_content(), "it was answered already"

    assert on(Federation(2), main).executions == 1


def test_an_offline_node_fails_at_once_or_is_waited_for() -> None:
    federation = Federation(2, offline=["node-1"])
    federation.at(30.0, lambda: federation.set_online("node-1", True))

    def main(grid: Grid) -> None:
        (reply,) = grid.send_and_receive(messages_to("node-1"), on_offline="fail")
        assert reply.error.code == ErrorCode.NODE_UNAVAILABLE
        assert federation.clock.now == 0.0
        (reply,) = grid.send_and_receive(messages_to("node-1"), on_offline="wait")
        assert reply.has_content()
        assert federation.clock.now == 30.0

    on(federation, main)


def test_a_node_that_goes_offline_fails_only_what_was_sent_that_way() -> None:
    federation = Federation(2, delays={"node-0": 10.0, "node-1": 10.0})
    federation.at(5.0, lambda: federation.set_online("node-0", False))
    federation.at(5.0, lambda: federation.set_online("node-1", False))
    federation.at(60.0, lambda: federation.set_online("node-1", True))

    def main(grid: Grid) -> None:
        fails = grid.stream(messages_to("node-0"), on_offline="fail")
        waits = grid.stream(messages_to("node-1"), on_offline="wait")
        assert [reply.error.code for reply in fails] == [ErrorCode.NODE_UNAVAILABLE]
        assert [reply.has_content() for reply in waits] == [True]

    on(federation, main)


def test_a_message_that_nobody_answers_expires_at_the_end_of_its_ttl() -> None:
    federation = Federation(1, offline=["node-0"])

    def main(grid: Grid) -> None:
        (reply,) = grid.send_and_receive(messages_to("node-0", ttl=600))
        assert reply.error.code == ErrorCode.MESSAGE_EXPIRED
        assert federation.clock.now == 600.0

    on(federation, main)


def test_a_node_that_is_held_for_good_lets_its_message_expire() -> None:
    federation = Federation(2)
    federation.hold("node-1")

    def main(grid: Grid) -> None:
        first, second = grid.send_and_receive(messages_to("node-1", "node-0"))
        assert first.metadata.src_node_id == "node-0"
        assert second.error.code == ErrorCode.MESSAGE_EXPIRED
        assert federation.clock.now == DEFAULT_TTL

    on(federation, main)


def test_waiting_without_limit_for_nodes_that_cannot_come_is_an_error_in_a_test() -> None:
    with pytest.raises(FederationStuck, match="more nodes than the 2 that are connected"):
        on(Federation(2), lambda grid: grid.wait_for_nodes(3))


def test_no_reply_comes_to_what_was_never_sent() -> None:
    with pytest.raises(AppError, match="'nonsense': it is not of this run"):
        on(Federation(2), lambda grid: list(grid.stream(message_ids=["nonsense"])))


def test_an_unknown_node_is_an_error_and_nothing_is_sent() -> None:
    federation = Federation(2)
    run = federation.begin(lambda grid, context: grid.push_messages(messages_to("node-0", "node-9")), echo)
    with pytest.raises(AppError, match="no node 'node-9'; the nodes are: node-0, node-1"):
        run.execute()
    assert run.messages == 0


def test_a_message_is_made_by_the_grid_or_by_its_constructor() -> None:
    def main(grid: Grid) -> None:
        made = grid.create_message(RecordDict(), "query", "node-0", "3", ttl=60)
        assert (made.metadata.dst_node_id, made.metadata.group_id, made.metadata.ttl) == ("node-0", "3", 60)
        assert sources(grid.send_and_receive([made])) == ["node-0"]

    on(Federation(1), main)


@pytest.mark.parametrize(
    "wrong",
    [{}, {"messages": [], "message_ids": []}, {"messages": [], "min_replies": 0}, {"messages": [], "grace": -1.0}],
)
def test_arguments_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"messages|min_replies|grace"):
        on(Federation(1), lambda grid: grid.stream(**wrong))


def test_node_names_are_sorted_and_offline_ones_are_there_when_asked_for() -> None:
    federation = Federation(["b", "c", "a"], offline=["c"])

    def main(grid: Grid) -> None:
        assert grid.get_node_ids() == grid.get_node_ids(online=True) == ["a", "b"]
        assert grid.get_node_ids(online=False) == ["a", "b", "c"]
        assert grid.wait_for_nodes(2) == ["a", "b"]

    on(federation, main)
