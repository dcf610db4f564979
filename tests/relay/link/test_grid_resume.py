"""A ServerApp that was interrupted, wherever that was, goes on as if it had not been."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from fedq.apps import ArrayRecord, ConfigRecord, Context, ErrorCode, Message, MetricRecord, RecordDict, ServerApp
from fedq.apps.strategy import FedAvg, Result
from fedq.relay import arrivals, journal
from fedq.relay.connection import Relay
from fedq.relay.errors import Fenced, JournalMismatch, RevisionLost
from fedq.relay.grid import KEPT_PUSHES
from tests.relay.link.conftest import Setting
from tests.relay.link.killing import ended
from tests.relay.link.test_grid_messages import content, plus_one, to
from tests.support import RealServer
from tests.support.waiting import wait_until


def test_what_was_sent_before_is_not_sent_again_and_its_answer_is_found(setting: Setting) -> None:
    node = setting.node("a", plus_one)
    first = setting.grid()
    ids = first.push_messages(to(["a"]))
    wait_until(lambda: len(node.seen) == 1, "the node has worked on the message")
    second = setting.interrupt(first)
    assert second.push_messages(to(["a"])) == ids
    assert len(list(second.stream(message_ids=ids, timeout=20))) == 1
    assert len(node.seen) == 1


def test_replies_come_in_the_same_order_again(setting: Setting) -> None:
    nodes = [setting.node(name, plus_one) for name in "abc"]
    for node in nodes:
        node.hold()
    first = setting.grid()
    replies = iter(first.stream(to(["a", "b", "c"]), timeout=20))
    order = []
    for node in (nodes[2], nodes[0], nodes[1]):
        node.release()
        order.append(next(replies).metadata.src_node_id)
    second = setting.interrupt(first)
    again = [reply.metadata.src_node_id for reply in second.stream(to(["a", "b", "c"]), timeout=20)]
    assert again == order == ["c", "a", "b"]


def test_a_reply_that_a_checkpoint_left_for_later_comes_first_again(setting: Setting) -> None:
    nodes = {name: setting.node(name, plus_one) for name in ("a", "b", "slow")}
    nodes["slow"].hold()
    first = setting.grid()
    ids = first.push_messages(to(["a", "b", "slow"]))
    wait_until(lambda: nodes["a"].seen and nodes["b"].seen, "both have worked on it")
    wait_until(lambda: len(first.pull_messages(ids)) == 2, "both replies are there")
    first.context.save(folded=ids[:1])
    replies = iter(first.stream(message_ids=ids[1:], timeout=20))
    order = [next(replies).metadata.src_node_id]
    nodes["slow"].release()
    order.append(next(replies).metadata.src_node_id)
    second = setting.interrupt(first)
    again = [reply.metadata.src_node_id for reply in second.stream(message_ids=ids[1:], timeout=20)]
    assert again == order == ["b", "slow"]


def test_replies_that_a_checkpoint_left_for_later_come_again_in_the_order_in_which_they_came(setting: Setting) -> None:
    # `tests/apps/test_testing_federation.py` has the same for the federation in a process.
    for name in ("a", "b", "c"):
        setting.node(name, plus_one)
    first = setting.grid()
    ids = first.push_messages(to(["a", "b", "c"]))
    for place in (2, 0, 1):
        wait_until(lambda place=place: first.pull_messages([ids[place]]), "its reply is there")  # type: ignore[misc]
    first.context.save(folded=ids[:1])
    order = [reply.metadata.src_node_id for reply in first.stream(message_ids=ids[1:], timeout=60)]
    second = setting.interrupt(first)
    again = [reply.metadata.src_node_id for reply in second.stream(message_ids=ids[1:], timeout=60)]
    assert again == order == ["c", "b"]


def test_the_roster_is_what_it_was(setting: Setting) -> None:
    setting.node("a")
    first = setting.grid()
    assert first.get_node_ids() == ["a"]
    assert first.wait_for_nodes(1) == ["a"]
    setting.node("b")
    second = setting.interrupt(first)
    assert second.get_node_ids() == ["a"]
    assert second.wait_for_nodes(1) == ["a"]
    assert second.get_node_ids() == ["a", "b"], "this call is a new one"


def test_a_timeout_that_passed_has_passed(setting: Setting) -> None:
    node = setting.node("a", plus_one)
    node.hold()
    first = setting.grid()
    replies = first.stream(to(["a"]), timeout=0.1)
    assert list(replies) == []
    node.release()
    wait_until(lambda: node.seen, "the late reply is there")
    second = setting.interrupt(first)
    assert list(second.stream(to(["a"]), timeout=0.1)) == []


def test_pulls_that_gave_nothing_give_nothing_again(setting: Setting) -> None:
    node = setting.node("a", plus_one)
    node.hold()
    first = setting.grid()
    ids = first.push_messages(to(["a"]))
    assert [first.pull_messages(ids) for _ in range(3)] == [[], [], []]
    node.release()
    wait_until(lambda: first.pull_messages(ids), "the reply is there")
    second = setting.interrupt(first)
    second.push_messages(to(["a"]))
    assert [second.pull_messages(ids) for _ in range(3)] == [[], [], []]
    wait_until(lambda: second.pull_messages(ids), "the reply is there again")


def test_an_event_is_told_once(setting: Setting) -> None:
    first = setting.grid()
    first.emit("metric", {"n": 1})
    first.emit("metric", {"n": 2})
    second = setting.interrupt(first)
    for n in (1, 2, 3):
        second.emit("metric", {"n": n})
    assert [event.data["n"] for event in setting.told(second, "metric")] == [1, 2, 3]


def test_the_context_is_that_of_the_last_checkpoint(setting: Setting) -> None:
    first = setting.grid()
    first.context.state["model"] = ArrayRecord([np.arange(50_000.0)])
    first.context.save()
    first.context.state["lost"] = ConfigRecord({"a": 1})
    second = setting.interrupt(first)
    assert list(second.context.state) == ["model"]
    np.testing.assert_array_equal(
        second.context.state.array_records["model"].to_numpy_ndarrays()[0], np.arange(50_000.0)
    )


def test_a_checkpoint_frees_what_went_into_it(setting: Setting) -> None:
    setting.node("a", plus_one)
    grid = setting.grid()
    grid.send_and_receive(to(["a"]), timeout=20)
    assert setting.relay.redis.keys(f"{setting.relay.keys.base}*obj:*")
    grid.context.save()
    assert not setting.relay.redis.keys(f"{setting.relay.keys.base}*obj:*")
    assert not setting.relay.redis.keys(f"{setting.relay.keys.base}*out:*")
    assert not setting.relay.redis.exists(setting.relay.keys.sent(grid.run_id))


def test_a_message_that_a_checkpoint_leaves_open_is_gone_on_with(setting: Setting) -> None:
    setting.node("a", plus_one)
    slow = setting.node("b", plus_one)
    slow.hold()
    first = setting.grid()
    ids = first.push_messages([Message(content(), name, "train.slowly", group_id="7") for name in ("a", "b")])
    quick = next(iter(first.stream(message_ids=ids, timeout=20)))
    first.context.state["open"] = ConfigRecord({"id": ids[1]})
    first.context.save(folded=[quick.metadata.reply_to_message_id])
    second = setting.interrupt(first)
    assert list(second.context.state) == ["open"], "what the Grid keeps for itself is not shown"
    slow.release()
    (reply,) = second.stream(message_ids=[str(second.context.state.config_records["open"]["id"])], timeout=20)
    assert (reply.metadata.message_type, reply.metadata.group_id) == ("train.slowly", "7")
    assert len(slow.seen) == 1


def test_another_push_than_before_is_an_error_that_says_which(setting: Setting) -> None:
    setting.node("a").hold()
    first = setting.grid()
    first.push_messages(to(["a"]))
    first.push_messages(to(["a"], content(1.0)))
    second = setting.interrupt(first)
    second.push_messages(to(["a"]))
    with pytest.raises(JournalMismatch, match="push 1 after checkpoint 0"):
        second.push_messages(to(["a"], content(2.0)))


def test_an_attempt_that_is_overtaken_ends(setting: Setting) -> None:
    setting.node("a").hold()
    first = setting.grid()
    setting.interrupt(first)
    for step in (
        lambda: first.push_messages(to(["a"])),
        lambda: first.emit("metric", {}),
        lambda: first.context.save(),
        lambda: first.get_node_ids(),
    ):
        with pytest.raises(Fenced):
            step()


def test_an_app_that_never_saves_does_not_fill_the_server(setting: Setting) -> None:
    setting.node("a", plus_one)
    grid = setting.grid(durability="none")
    for n in range(KEPT_PUSHES + 4):
        grid.send_and_receive(to(["a"], content(float(n))), timeout=20)
    answers = setting.relay.redis.keys(f"{setting.relay.keys.base}*out:*")
    assert len(answers) <= KEPT_PUSHES + 1
    assert not setting.interrupt(grid).replayable


def test_with_durability_replay_everything_is_kept(setting: Setting) -> None:
    node = setting.node("a", plus_one)
    first = setting.grid(durability="replay")
    for n in range(KEPT_PUSHES + 4):
        first.send_and_receive(to(["a"], content(float(n))), timeout=20)
    second = setting.interrupt(first)
    assert second.replayable
    for n in range(KEPT_PUSHES + 4):
        (reply,) = second.send_and_receive(to(["a"], content(float(n))), timeout=20)
        assert reply.content.array_records["arrays"].to_numpy_ndarrays()[0][0] == n + 1
    assert len(node.seen) == KEPT_PUSHES + 4


# -- at any point ------------------------------------------------------------------------------------------------------


def answer(message: Message, context: Context) -> RecordDict:
    """Trains: adds what depends on the node and on how often it was asked."""
    count = 1 + int(context.state.metric_records["seen"]["count"] if "seen" in context.state else 0)  # type: ignore[arg-type]
    context.state["seen"] = MetricRecord({"count": count})
    step = 0.1 * count + len(context.node_id)
    arrays = [array * 0.9 + step for array in message.content.array_records["arrays"].to_numpy_ndarrays()]
    metrics = MetricRecord({"num-examples": len(context.node_id), "loss": step})
    return RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics})


app = ServerApp()


@app.main()
def main(grid: Any, context: Context) -> Result:
    strategy = FedAvg(min_train_nodes=2, min_evaluate_nodes=2, min_available_nodes=2)
    return strategy.start(grid, ArrayRecord([np.zeros(3000), np.ones(3)]), num_rounds=2)


def test_a_strategy_killed_after_any_call_ends_with_the_same_bits(setting: Setting) -> None:
    setting.node("a", answer)
    setting.node("bb", answer)
    whole = ended(setting, app)
    assert [told["round"] for told in whole.rounds] == [1, 2]
    assert whole.calls > 15
    for after in range(1, whole.calls):
        assert ended(setting, app, after).same(whole), f"killed after call {after} of {whole.calls}"


# -- outages -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def own(own_server: RealServer, tmp_path: Any) -> Iterator[Setting]:
    with Relay.connect(own_server.url) as relay:
        made = Setting(own_server, relay, tmp_path)
        yield made
        made.stack.close()


def test_a_server_that_is_restarted_in_between_is_waited_for(own: Setting, own_server: RealServer) -> None:
    node = own.node("a", plus_one)
    node.hold()
    grid = own.grid()
    replies = iter(grid.stream(to(["a"]), timeout=30))
    own_server.restart()
    node.release()
    assert next(replies).has_content()
    own_server.restart()
    grid.context.save()
    assert grid.checkpoint == 1


def test_an_attempt_ends_when_the_server_has_lost_what_it_acknowledged(own: Setting) -> None:
    own.node("a").hold()
    grid = own.grid()
    grid.push_messages(to(["a"]))
    own.relay.redis.hincrby(own.relay.keys.run(grid.run_id), "rev", -1)
    own.relay.redis.client_kill_filter(_type="normal", skipme=True)
    with pytest.raises(RevisionLost, match="goes on from its last checkpoint"):
        grid.push_messages(to(["a"]))


def test_a_message_that_vanished_is_answered(own: Setting) -> None:
    own.node("a").hold()
    grid = own.grid()
    ids = grid.push_messages(to(["a"]))
    own.relay.redis.delete(own.relay.keys.inbox("a"))
    grid.cancel(ids)
    (reply,) = grid.stream(message_ids=ids, timeout=20)
    assert reply.error.code == ErrorCode.MESSAGE_UNAVAILABLE


def test_a_node_that_could_not_show_itself_during_an_outage_is_not_offline(
    own: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = own.node("a", plus_one)
    node.hold()
    grid = own.grid()
    grid.get_node_ids()
    monkeypatch.setattr(arrivals, "AFTER_OUTAGE", 600.0)
    own.relay.redis.client_kill_filter(_type="normal", skipme=True)
    node.go_offline()
    ids = grid.push_messages(to(["a"]), on_offline="fail")
    assert grid.pull_messages(ids) == []
    # Some time later:
    monkeypatch.setattr(arrivals, "AFTER_OUTAGE", 0.0)
    (reply,) = grid.stream(message_ids=ids, timeout=20)
    assert reply.error.code == ErrorCode.NODE_UNAVAILABLE


def remembered(relay: Relay) -> Callable[[], None]:
    """Takes the server back to now and cuts all connections: what a failover does, and a crash with everysec."""
    kept = {key: relay.redis.dump(key) for key in relay.redis.scan_iter()}

    def go_back() -> None:
        with relay.redis.pipeline(transaction=True) as pipe:
            pipe.flushdb()
            for key, value in kept.items():
                pipe.restore(key, 0, value)  # type: ignore[arg-type]
            pipe.client_kill_filter(_type="normal", skipme=True)
            pipe.execute()

    return go_back


def test_an_attempt_that_has_a_reply_which_the_server_has_lost_ends(own: Setting) -> None:
    node = own.node("a", answer)
    node.hold()
    grid = own.grid()
    ids = grid.push_messages(to(["a"]))
    go_back = remembered(own.relay)
    node.release()
    (reply,) = grid.stream(message_ids=ids, timeout=20)
    assert reply.has_content()
    node.hold()
    go_back()
    # The node will work on it again, from a Context without the first time: this reply must not count.
    with pytest.raises(RevisionLost):
        grid.context.save()
    node.release()
    again = own.interrupt(grid)
    assert again.push_messages(to(["a"])) == ids
    assert len(list(again.stream(message_ids=ids, timeout=20))) == 1


@pytest.mark.parametrize("pull", [True, False], ids=["pulled", "streamed"])
def test_a_reply_that_is_lost_before_it_was_given_has_not_arrived(
    own: Setting, monkeypatch: pytest.MonkeyPatch, *, pull: bool
) -> None:
    node = own.node("a", lambda message, context: RecordDict({"n": MetricRecord({"n": len(node.seen)})}))
    node.hold()
    grid = own.grid()
    ids = grid.push_messages(to(["a"]))
    go_back = remembered(own.relay)
    node.release()

    def losing(note: Callable[..., Any]) -> Callable[..., Any]:
        def lose(*args: Any) -> Any:
            monkeypatch.undo()
            node.hold()
            go_back()
            node.release()
            return note(*args)

        return lose

    for name in ("record", "record_and_read"):
        monkeypatch.setattr(journal, name, losing(getattr(journal, name)))
    found: list[Message] = []
    if pull:
        wait_until(lambda: found.extend(grid.pull_messages(ids)) or found, "the reply is there")
    else:
        found += grid.stream(message_ids=ids)  # a time-out would be noted, and that lost as well
    assert [reply.content.metric_records["n"]["n"] for reply in found] == [2]


def test_an_event_that_is_lost_ends_the_attempt_that_told_it(own: Setting) -> None:
    grid = own.grid()
    go_back = remembered(own.relay)
    grid.emit("metric", {"n": 1})
    go_back()
    with pytest.raises(RevisionLost):
        grid.emit("metric", {"n": 2})
