"""Messages: how they are made, what is refused, what cannot be changed."""

from __future__ import annotations

import dataclasses
import logging
import pickle
import time
from typing import Any

import pytest

from fedq.apps import (
    DEFAULT_TTL,
    Context,
    Error,
    ErrorCode,
    Message,
    MessageInitializationError,
    MessageType,
    MetricRecord,
    RecordDict,
)
from fedq.apps.errors import CheckpointUnavailable, ConfigError, FedqError
from fedq.apps.message import make_message
from fedq.apps.message_type import is_message_type, split_message_type
from fedq.apps.user_config import check_user_config

content = RecordDict({"m": MetricRecord({"a": 1})})


def received(**changes: Any) -> Message:
    message = Message(content, "site-a", "train", group_id="3")
    named = {"run_id": 7, "message_id": "m1", "src_node_id": "", **changes}
    return make_message(message.metadata.replace(**named), content)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ((content, "site-a", "train"), {}),
        ((content, "site-a"), {"message_type": "train"}),
        ((content,), {"dst_node_id": "site-a", "message_type": "train"}),
        ((), {"content": content, "dst_node_id": "site-a", "message_type": "train"}),
    ],
)
def test_an_instruction_has_a_destination_and_a_type_and_lives_for_twelve_hours(
    words: tuple[Any, ...], named: dict[str, Any]
) -> None:
    before = time.time()
    message = Message(*words, **named)
    assert message.content is content
    meta = message.metadata
    assert (meta.dst_node_id, meta.message_type, meta.ttl, meta.group_id) == ("site-a", "train", DEFAULT_TTL, "")
    assert (meta.run_id, meta.message_id, meta.src_node_id, meta.reply_to_message_id) == (0, "", "", "")
    assert before <= meta.created_at <= time.time()
    assert meta.expires_at == meta.created_at + DEFAULT_TTL


def test_ttl_and_group_can_be_given() -> None:
    meta = Message(content, "site-a", "query", ttl=3, group_id="round-1").metadata
    assert (meta.ttl, meta.group_id) == (3, "round-1")
    assert Message(content, "site-a", "query", ttl=0).metadata.ttl == DEFAULT_TTL


@pytest.mark.parametrize("kind", ["content", "error"])
def test_a_reply_turns_the_addresses_round_and_keeps_run_type_and_group(kind: str) -> None:
    message = received()
    body: Any = content if kind == "content" else Error(ErrorCode.UNKNOWN, "why")
    for reply in (Message(body, reply_to=message), Message(**{kind: body}, reply_to=message)):
        meta = reply.metadata
        assert (meta.src_node_id, meta.dst_node_id) == ("site-a", "")
        assert (meta.run_id, meta.reply_to_message_id, meta.message_id) == (7, "m1", "")
        assert (meta.message_type, meta.group_id) == ("train", "3")
        assert reply.has_content() is (kind == "content")
        assert reply.has_error() is (kind == "error")


def test_a_reply_lives_no_longer_than_its_instruction(caplog: pytest.LogCaptureFixture) -> None:
    message = received(ttl=100.0)
    assert 99 < Message(content, reply_to=message).metadata.ttl <= 100
    assert Message(content, reply_to=message, ttl=5).metadata.ttl == 5
    with caplog.at_level(logging.WARNING):
        assert 99 < Message(content, reply_to=message, ttl=1000).metadata.ttl <= 100
    assert "1000.00 s" in caplog.text


def test_the_short_forms_of_a_reply_do_the_same() -> None:
    message = received()
    assert message.create_reply(content).metadata.reply_to_message_id == "m1"
    assert message.create_reply(content, ttl=5).metadata.ttl == 5
    error = message.create_error_reply(Error(1, "x"), ttl=4)
    assert (error.error, error.metadata.ttl) == (Error(1, "x"), 4)


instruction = received()


@pytest.mark.parametrize(
    ("args", "named"),
    [
        ((), {}),
        ((content,), {}),
        ((content, "site-a"), {}),
        ((None, "site-a", "train"), {}),
        (({}, "site-a", "train"), {}),
        ((content, 1, "train"), {}),
        ((content, "site-a", 1), {}),
        ((content, "site-a", "train", 3), {}),
        ((content, "site-a"), {"dst_node_id": "site-a", "message_type": "train"}),
        ((content, "site-a", "train"), {"message_type": "train"}),
        ((content, "site-a", "train"), {"content": content}),
        ((content, "site-a", "train"), {"ttl": "x"}),
        ((content, "site-a", "train"), {"ttl": -1}),
        ((content, "site-a", "train"), {"ttl": float("nan")}),
        ((content, "site-a", "train"), {"ttl": float("inf")}),
        ((content, "site-a", "train"), {"group_id": 1}),
        ((Error(1),), {}),
        ((Error(1), "site-a", "train"), {}),
        ((content, "site-a"), {"reply_to": instruction}),
        ((content,), {"reply_to": instruction, "message_type": "train"}),
        ((content,), {"reply_to": instruction, "group_id": "1"}),
        ((content,), {"reply_to": 1}),
        ((), {"content": content, "error": Error(1), "reply_to": instruction}),
        ((), {"content": Error(1), "reply_to": instruction}),
        ((), {"error": content, "reply_to": instruction}),
    ],
)
def test_arguments_that_do_not_fit_are_a_type_error(args: tuple[Any, ...], named: dict[str, Any]) -> None:
    with pytest.raises(MessageInitializationError, match="A Message is made as") as caught:
        Message(*args, **named)
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, FedqError)


@pytest.mark.parametrize("kind", ["train", "evaluate", "query", "train.warmup", "query.a_1"])
def test_a_message_type_is_a_category_or_a_category_with_an_action(kind: str) -> None:
    assert Message(content, "site-a", kind).metadata.message_type == kind
    category, _, action = kind.partition(".")
    assert split_message_type(kind) == (category, action or None)


@pytest.mark.parametrize("kind", ["", "foo", "train.", "train.1", "train.a.b", ".a", "Train", "train ", "train.a b"])
def test_other_message_types_are_a_value_error(kind: str) -> None:
    assert not is_message_type(kind)
    with pytest.raises(ValueError, match="message type"):
        Message(content, "site-a", kind)


def test_message_types_have_names_and_no_instances() -> None:
    assert (MessageType.TRAIN, MessageType.EVALUATE, MessageType.QUERY) == ("train", "evaluate", "query")
    with pytest.raises(TypeError):
        MessageType()


def test_metadata_cannot_be_changed_but_replaced() -> None:
    message: Any = received()
    for field in dataclasses.fields(message.metadata):
        with pytest.raises(AttributeError):
            setattr(message.metadata, field.name, None)
    with pytest.raises(AttributeError):
        message.metadata = message.metadata
    changed = message.metadata.replace(ttl=1.0)
    assert changed.ttl == 1.0
    assert changed != message.metadata
    assert changed.replace(ttl=message.metadata.ttl) == message.metadata
    with pytest.raises(ValueError, match="message type"):
        message.metadata.replace(message_type="foo")


def test_content_and_error_exclude_each_other() -> None:
    good: Any = received()
    bad: Any = Message(Error(1, "why"), reply_to=good)
    with pytest.raises(ValueError, match="has_error"):
        _ = good.error
    with pytest.raises(ValueError, match="why"):
        _ = bad.content
    with pytest.raises(ValueError, match="error"):
        bad.content = content
    with pytest.raises(ValueError, match="content"):
        good.error = Error(1)
    for message, name in ((good, "content"), (bad, "error")):
        with pytest.raises(TypeError):
            setattr(message, name, 1)
    good.content = RecordDict()
    assert good.content == {}
    bad.error = Error(2)
    assert bad.error.code == 2
    for both in ({}, {"content": content, "error": Error(1)}):
        with pytest.raises(MessageInitializationError):
            make_message(good.metadata, **both)  # type: ignore[arg-type]


def test_messages_survive_pickle() -> None:
    message = pickle.loads(pickle.dumps(received()))
    assert message.metadata == instruction.metadata.replace(created_at=message.metadata.created_at)
    assert message.content == content


def test_an_error_has_a_code_a_reason_and_perhaps_a_traceback() -> None:
    error = Error(ErrorCode.TIME_LIMIT, "took too long", "Traceback ...")
    assert (error.code, error.name, error.reason, error.traceback) == (
        100,
        "TIME_LIMIT",
        "took too long",
        "Traceback ...",
    )
    assert error == Error(100, "took too long", "Traceback ...")
    assert error != Error(100, "took too long")
    assert error != 100
    assert Error(4321).name == "CODE_4321"
    assert "took too long" in repr(error)
    assert pickle.loads(pickle.dumps(error)) == error
    unchangeable: Any = error
    with pytest.raises(AttributeError):
        unchangeable.code = 1
    for wrong in ((None,), ("1",), (True,), (1, 2), (1, "x", 3)):
        with pytest.raises(TypeError):
            Error(*wrong)  # type: ignore[arg-type]


def test_the_first_codes_are_those_of_flower() -> None:
    assert [code.name for code in ErrorCode if code < 100] == [
        "UNKNOWN",
        "LOAD_CLIENT_APP_EXCEPTION",
        "CLIENT_APP_RAISED_EXCEPTION",
        "MESSAGE_UNAVAILABLE",
        "REPLY_MESSAGE_UNAVAILABLE",
        "NODE_UNAVAILABLE",
        "MOD_FAILED_PRECONDITION",
        "INVALID_FAB",
        "CLIENT_APP_CRASHED",
    ]
    assert [code.value for code in ErrorCode] == [*range(9), *range(100, 109)]


def test_errors_carry_the_ids_of_what_they_are_about() -> None:
    error = FedqError("what happened", run_id=3, node_id="site-a", message_id="m1")
    again = pickle.loads(pickle.dumps(error))
    for one in (error, again):
        assert (str(one), one.run_id, one.node_id, one.message_id) == ("what happened", 3, "site-a", "m1")


def test_a_context_of_a_client_app_writes_no_checkpoint_and_says_why() -> None:
    with pytest.raises(CheckpointUnavailable, match="on node site-a") as caught:
        Context(3, "site-a", {}, RecordDict(), {}).save()
    assert (caught.value.run_id, caught.value.node_id) == (3, "site-a")
    with pytest.raises(CheckpointUnavailable, match="outside of a run"):
        Context(3, "", {}, RecordDict(), {}).save(folded=["m1"])


def test_a_context_with_a_runtime_saves_through_it_and_does_not_take_it_along() -> None:
    calls: list[tuple[Context, Any]] = []
    context = Context(3, "", {"a": 1}, content, {"b": 2})
    context._saver = lambda saved, folded: calls.append((saved, folded))
    context.save()
    context.save(folded=["m1"])
    assert calls == [(context, None), (context, ["m1"])]
    again = pickle.loads(pickle.dumps(context))
    assert again == context
    with pytest.raises(CheckpointUnavailable):
        again.save()


def test_a_config_holds_plain_values_and_names_the_key_of_what_it_cannot_hold() -> None:
    import numpy as np

    config = check_user_config({"a": True, "b": 1, "c": np.float64(0.5), "d": "x", "e": ErrorCode.UNKNOWN})
    assert config == {"a": True, "b": 1, "c": 0.5, "d": "x", "e": 0}
    assert [type(value) for value in config.values()] == [bool, int, float, str, int]
    for wrong in (None, [1], {"b": 1}, b"x"):
        with pytest.raises(ConfigError, match=r"the run config has lr = .* bool, int, float or str"):
            check_user_config({"lr": wrong}, "run config")
    with pytest.raises(ConfigError, match="key 1"):
        check_user_config({1: 1})
    with pytest.raises(ConfigError, match="mapping"):
        check_user_config([1])  # type: ignore[arg-type]
