"""Messages go out once, replies come in as they arrive, whoever answers them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fedq.apps import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    ErrorCode,
    Message,
    MetricRecord,
    RecordDict,
    TooFewNodes,
)
from fedq.apps.errors import AppError
from fedq.relay import nodes, runs
from fedq.relay.errors import NodeUnknown, RelayFull, RunStopped
from tests.relay.link.conftest import Setting
from tests.support.waiting import wait_until

BIG = 100_000


def plus_one(message: Message, context: Context) -> RecordDict:
    arrays = [array + 1 for array in message.content.array_records["arrays"].to_numpy_ndarrays()]
    return RecordDict({"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"num-examples": 3})})


def content(value: float = 0.0, size: int = BIG) -> RecordDict:
    return RecordDict({"arrays": ArrayRecord([np.full(size, value)])})


def to(names: list[str], what: RecordDict | None = None, **kwargs: Any) -> list[Message]:
    what = what if what is not None else content()
    return [Message(what, name, "train", group_id="1", **kwargs) for name in names]


def test_replies_come_back_with_their_arrays_and_say_what_they_answer(setting: Setting) -> None:
    setting.node("a", plus_one)
    setting.node("b", plus_one)
    grid = setting.grid()
    ids = grid.push_messages(to(["a", "b"]))
    replies = {reply.metadata.reply_to_message_id: reply for reply in grid.stream(message_ids=ids, timeout=20)}
    assert list(replies) == sorted(ids, key=list(replies).index)
    assert set(replies) == set(ids)
    reply = replies[ids[1]]
    assert (reply.metadata.src_node_id, reply.metadata.message_type, reply.metadata.group_id) == ("b", "train", "1")
    assert reply.metadata.run_id == grid.run_id
    (array,) = reply.content.array_records["arrays"].to_numpy_ndarrays()
    np.testing.assert_array_equal(array, np.ones(BIG))


def test_a_broadcast_stores_its_arrays_once(setting: Setting) -> None:
    for name in ("a", "b", "c"):
        setting.node(name).hold()
    grid = setting.grid()
    grid.push_messages(to(["a", "b", "c"]))
    assert len(list(setting.relay.redis.scan_iter(f"{setting.relay.keys.obj('')}*:owners"))) == 1
    # Equal contents are one, too, though each message has an object of its own.
    grid.push_messages([Message(content(), name, "train") for name in ("a", "b")])
    assert len(list(setting.relay.redis.scan_iter(f"{setting.relay.keys.obj('')}*:owners"))) == 1


def test_a_reply_that_is_there_does_not_wait_for_one_that_is_not(setting: Setting) -> None:
    setting.node("a", plus_one)
    slow = setting.node("b", plus_one)
    slow.hold()
    grid = setting.grid()
    replies = iter(grid.stream(to(["a", "b"]), timeout=20))
    assert next(replies).metadata.src_node_id == "a"
    slow.release()
    assert next(replies).metadata.src_node_id == "b"
    assert next(replies, None) is None


def test_a_stream_ends_at_its_timeout_and_its_messages_stay_valid(setting: Setting) -> None:
    node = setting.node("a", plus_one)
    node.hold()
    grid = setting.grid()
    replies = grid.stream(to(["a"]), timeout=0.2)
    assert list(replies) == []
    node.release()
    assert len(list(grid.stream(message_ids=replies.message_ids, timeout=20))) == 1


def test_pull_gives_what_is_there_and_never_waits(setting: Setting) -> None:
    node = setting.node("a", plus_one)
    node.hold()
    grid = setting.grid()
    ids = grid.push_messages(to(["a"]))
    assert grid.pull_messages(ids) == []
    node.release()
    (reply,) = wait_until(lambda: grid.pull_messages(ids), "the reply is there")
    assert reply.has_content()
    assert len(grid.pull_messages(ids)) == 1, "it may be pulled again"
    assert grid.pull_messages(["unknown"]) == []


def test_the_first_k_replies_are_enough_and_the_rest_is_cancelled(setting: Setting) -> None:
    setting.node("a", plus_one)
    slow = setting.node("b", plus_one)
    slow.hold()
    grid = setting.grid()
    replies = grid.stream(to(["a", "b"]), min_replies=1, grace=0.05, timeout=20)
    assert [reply.metadata.src_node_id for reply in replies] == ["a"]
    (cancelled,) = grid.stream(message_ids=replies.unanswered, timeout=20)
    assert cancelled.error.code == ErrorCode.CANCELLED
    slow.release()
    wait_until(lambda: not setting.relay.redis.xlen(setting.relay.keys.inbox("b")), "the message has left the inbox")
    assert slow.seen == []


def test_an_error_does_not_count_as_one_of_the_first_k(setting: Setting) -> None:
    setting.node("a", lambda message, context: Error(1000, "not today"))
    setting.node("b", plus_one)
    grid = setting.grid()
    replies = list(grid.stream(to(["a", "b"]), min_replies=1, timeout=20))
    assert [reply.has_error() for reply in replies][-1] is False


def test_a_message_whose_time_is_up_is_answered_by_the_grid(setting: Setting) -> None:
    setting.node("a").hold()
    grid = setting.grid()
    (reply,) = grid.stream(to(["a"], ttl=0.2))
    assert reply.error.code == ErrorCode.MESSAGE_EXPIRED


def test_a_message_to_an_offline_node_fails_at_once_if_that_is_wanted(setting: Setting) -> None:
    setting.node("a", plus_one)
    nodes.add(setting.relay, "away")
    grid = setting.grid()
    replies = {reply.metadata.src_node_id: reply for reply in grid.stream(to(["a", "away"]), on_offline="fail")}
    assert replies["a"].has_content()
    assert replies["away"].error.code == ErrorCode.NODE_UNAVAILABLE
    assert "away is offline" in str(replies["away"].error.reason)


def test_a_message_to_a_node_that_goes_offline_fails_if_that_is_wanted(setting: Setting) -> None:
    node = setting.node("a", plus_one)
    node.hold()
    grid = setting.grid()
    replies = grid.stream(to(["a"]), on_offline="fail")
    node.go_offline()
    (reply,) = replies
    assert reply.error.code == ErrorCode.NODE_UNAVAILABLE


def test_otherwise_it_waits_for_the_node(setting: Setting) -> None:
    nodes.add(setting.relay, "late")
    grid = setting.grid()
    ids = grid.push_messages(to(["late"]))
    setting.node("late", plus_one)
    (reply,) = grid.stream(message_ids=ids, timeout=20)
    assert reply.has_content()


def test_an_unknown_node_is_named_and_nothing_is_sent(setting: Setting) -> None:
    node = setting.node("a")
    node.hold()
    grid = setting.grid()
    with pytest.raises(NodeUnknown, match="nobody") as raised:
        grid.push_messages(to(["a", "nobody"]))
    assert raised.value.node_id == "nobody"
    assert setting.relay.redis.xlen(setting.relay.keys.inbox("a")) == 0
    node.answer = plus_one
    node.release()
    assert len(grid.send_and_receive(to(["a"]), timeout=20)) == 1


def test_only_the_nodes_that_the_run_selects_are_there_for_it(setting: Setting) -> None:
    setting.node("a", plus_one, site="eu")
    setting.node("b", plus_one, site="us")
    nodes.register(setting.relay, "c", nodes.NodeInfo(labels={"site": "eu"}))
    grid = setting.grid(selector={"site": "eu"})
    assert grid.get_node_ids() == ["a"]
    assert grid.get_node_ids(online=False) == ["a", "c"]
    with pytest.raises(NodeUnknown, match="site=eu"):
        grid.push_messages(to(["b"]))


def test_waiting_for_nodes_tells_how_many_are_there(setting: Setting) -> None:
    setting.node("a")
    grid = setting.grid()
    found: list[list[str]] = []
    thread = threading.Thread(target=lambda: found.append(grid.wait_for_nodes(2, timeout=20)))
    thread.start()
    wait_until(lambda: setting.told(grid, "waiting-for-nodes"), "the run says that it waits")
    setting.node("b")
    thread.join(20)
    assert found == [["a", "b"]]
    assert [event.data["text"] for event in setting.told(grid, "waiting-for-nodes")] == ["1 of 2 nodes"]


def test_waiting_for_nodes_has_an_end(setting: Setting) -> None:
    setting.node("a")
    with pytest.raises(TooFewNodes, match=r"1 of 3 nodes connected after 0\.1 s"):
        setting.grid().wait_for_nodes(3, timeout=0.1)


def test_a_stopped_run_ends_its_grid(setting: Setting) -> None:
    setting.node("a").hold()
    grid = setting.grid()
    replies = grid.stream(to(["a"]))
    runs.stop_run(setting.relay, grid.run_id)
    with pytest.raises(RunStopped):
        list(replies)
    with pytest.raises(RunStopped):
        grid.push_messages(to(["a"]))
    with pytest.raises(RunStopped):
        grid.emit("metric", {})
    with pytest.raises(RunStopped):
        grid.context.save()


def test_a_server_that_is_nearly_full_takes_no_more_messages_and_still_takes_checkpoints(setting: Setting) -> None:
    setting.node("a").hold()
    grid = setting.grid()
    used, _ = setting.relay.memory()
    setting.relay.redis.config_set("maxmemory", int(used * 1.2))
    try:
        with pytest.raises(RelayFull, match="75 % of maxmemory"):
            grid.push_messages(to(["a"]))
        grid.context.state["note"] = ConfigRecord({"a": 1})
        grid.context.save()
    finally:
        setting.relay.redis.config_set("maxmemory", 0)
    assert setting.relay.redis.xlen(setting.relay.keys.inbox("a")) == 0
    assert grid.push_messages(to(["a"]))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ["text"], "takes Messages, not str"),
        (lambda: [Message(Error(0), reply_to=to(["a"])[0])], "not an error"),
    ],
)
def test_what_is_no_instruction_is_refused(setting: Setting, make: Callable[[], Any], words: str) -> None:
    with pytest.raises(AppError, match=words):
        setting.grid().push_messages(make())


def test_events_with_numbers_that_json_does_not_have_are_told_all_the_same(setting: Setting) -> None:
    grid = setting.grid()
    grid.emit("metric", {"name": "loss", "value": float("nan"), "more": [1.5, float("inf")]})
    (event,) = setting.told(grid, "metric")
    assert event.data == {"name": "loss", "value": None, "more": [1.5, None]}
    with pytest.raises(AppError, match="'metric' holds what JSON cannot"):
        grid.emit("metric", {"value": object()})  # type: ignore[dict-item]
