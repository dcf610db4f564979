"""A ClientApp routes each message to its function, through its mods, and returns nothing but a reply to it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fedq.apps import ClientApp, Context, ErrorCode, Message, MetricRecord, RecordDict
from fedq.apps.client_app import answer
from fedq.apps.errors import InvalidReply, UnknownAction
from fedq.apps.mod import ClientAppCallable, Mod
from fedq.apps.testing import ask


def content(value: float = 1.0) -> RecordDict:
    return RecordDict({"metrics": MetricRecord({"value": value})})


def context() -> Context:
    return Context(run_id=1, node_id="a", node_config={}, state=RecordDict(), run_config={})


def replying(name: str, seen: list[str]) -> ClientAppCallable:
    def function(message: Message, context: Context) -> Message:
        seen.append(name)
        return Message(content(), reply_to=message)

    return function


def tracing(name: str, seen: list[str]) -> Mod:
    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        seen.append(f"{name} in")
        reply = call_next(message, context)
        seen.append(f"{name} out")
        return reply

    return mod


@pytest.mark.parametrize("category", ["train", "evaluate", "query"])
def test_a_message_reaches_the_function_of_its_type_and_action(category: str) -> None:
    app, seen = ClientApp(), list[str]()
    getattr(app, category)()(replying("plain", seen))
    getattr(app, category)("warmup")(replying("warmup", seen))

    app(Message(content(), "a", category), context())
    app(Message(content(), "a", f"{category}.warmup"), context())
    app(Message(content(), "a", f"{category}.default"), context())

    assert seen == ["plain", "warmup", "plain"]


def test_a_decorated_function_stays_what_it_was() -> None:
    function = replying("plain", [])
    assert ClientApp().train()(function) is function


def test_mods_of_the_app_surround_mods_of_the_function_and_the_first_is_outermost() -> None:
    seen: list[str] = []
    app = ClientApp(mods=[tracing("app 1", seen), tracing("app 2", seen)])
    app.train(mods=[tracing("function", seen)])(replying("train", seen))

    app(Message(content(), "a", "train"), context())

    ins = ["app 1 in", "app 2 in", "function in"]
    assert seen == [*ins, "train", "function out", "app 2 out", "app 1 out"]


def test_a_mod_of_one_function_leaves_the_others_alone() -> None:
    seen: list[str] = []
    app = ClientApp()
    app.train(mods=[tracing("mod", seen)])(replying("train", seen))
    app.evaluate()(replying("evaluate", seen))

    app(Message(content(), "a", "evaluate"), context())

    assert seen == ["evaluate"]


def test_the_lifespan_surrounds_each_message_even_when_the_function_raises() -> None:
    seen: list[str] = []
    app = ClientApp()

    @app.lifespan()
    def lifespan(_: Context) -> Iterator[None]:
        seen.append("before")
        yield
        seen.append("after")

    @app.train()
    def train(message: Message, context: Context) -> Message:
        raise ZeroDivisionError("no examples")

    with pytest.raises(ZeroDivisionError):
        app(Message(content(), "a", "train"), context())
    assert seen == ["before", "after"]


def test_a_lifespan_yields_exactly_once() -> None:
    def never(_: Context) -> Iterator[None]:
        yield from ()

    def twice(_: Context) -> Iterator[None]:
        yield
        yield

    for lifespan, complaint in ((never, "did not yield"), (twice, "yielded again")):
        app = ClientApp()
        app.train()(replying("train", []))
        app.lifespan()(lifespan)
        with pytest.raises(RuntimeError, match=complaint):
            app(Message(content(), "a", "train"), context())


def test_an_action_is_an_identifier_and_registered_once() -> None:
    app = ClientApp()
    with pytest.raises(ValueError, match="identifier"):
        app.train("warm up")(replying("x", []))
    app.train("warmup")(replying("x", []))
    with pytest.raises(ValueError, match="already"):
        app.train("warmup")(replying("y", []))


def test_an_unknown_action_says_what_there_is_and_how_to_register_it() -> None:
    app = ClientApp()
    app.train()(replying("train", []))
    app.evaluate("deep")(replying("deep", []))

    with pytest.raises(
        UnknownAction, match=r"'train.warmup' \(it has: 'train', 'evaluate.deep'\).*@app.train"
    ) as caught:
        app(Message(content(), "a", "train.warmup"), context())
    assert caught.value.node_id == "a"


@pytest.mark.parametrize(
    ("returned", "complaint"),
    [
        (None, "returned None"),
        ({"loss": 1.0}, "an object of type dict"),
        (RecordDict(), "an object of type RecordDict"),
    ],
)
def test_what_is_no_message_is_an_invalid_reply(returned: object, complaint: str) -> None:
    app = ClientApp()
    app.train()(lambda message, context: returned)  # type: ignore[arg-type, return-value]
    with pytest.raises(InvalidReply, match=complaint):
        app(Message(content(), "a", "train"), context())


def test_a_reply_to_another_message_is_refused() -> None:
    kept: list[Message] = []
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(content(), "b", "train")

    @app.query()
    def query(message: Message, context: Context) -> Message:
        kept.append(message)
        return message

    with pytest.raises(InvalidReply, match="in the name of"):
        app(Message(content(), "a", "train"), context())
    with pytest.raises(InvalidReply, match="answers"):
        app(Message(content(), "a", "query"), context())


def test_what_goes_wrong_becomes_an_error_reply_with_code_reason_and_traceback() -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        raise KeyError("partition-id")

    app.evaluate()(lambda message, context: None)  # type: ignore[arg-type, return-value]

    raised = ask(app, content(), "train").error
    assert raised.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert raised.reason == "KeyError: 'partition-id'"
    assert raised.traceback is not None
    assert "def train" not in raised.traceback
    assert "in train" in raised.traceback
    assert ask(app, content(), "evaluate").error.code == ErrorCode.INVALID_REPLY
    assert ask(app, content(), "query").error.code == ErrorCode.UNKNOWN_ACTION


def test_an_error_that_an_app_replies_with_is_passed_on() -> None:
    from fedq.apps import Error

    app = ClientApp()
    app.query()(lambda message, context: Message(Error(1000, "no data today"), reply_to=message))
    reply = answer(app, Message(content(), "a", "query"), context())
    assert reply.error.reason == "no data today"
