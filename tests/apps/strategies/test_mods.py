"""Mods clip, add noise and tell sizes; what they cannot work with becomes an error that says why."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fedq.apps import ClientApp, ConfigRecord, Context, Error, ErrorCode, Message, MetricRecord, RecordDict
from fedq.apps.mod import (
    AllowKeysMod,
    ClippingMod,
    DenyKeysMod,
    LocalDpMod,
    Mod,
    SizeLimitMod,
    adaptiveclipping_mod,
    arrays_size_mod,
    fixedclipping_mod,
    message_size_mod,
    parameters_size_mod,
    train_arrays_only_mod,
)
from fedq.apps.testing import ask
from tests.apps.strategies.scripted import Arrays, record, single

SENT = single(1.0, 1.0)


def replying(arrays: Arrays, mod: Mod, **records: Any) -> ClientApp:
    """An app that answers everything with these arrays, whatever it got, and changes what it was given."""
    app = ClientApp(mods=[mod])

    def answer(message: Message, context: Context) -> Message:
        content = RecordDict({"arrays": record(arrays), "metrics": MetricRecord({"num-examples": 1}), **records})
        message.content.array_records.clear()
        for name in list(message.content):
            del message.content[name]
        return Message(content, reply_to=message)

    app.train()(answer)
    app.evaluate()(answer)
    return app


def asked(norm: Any = 1.0, arrays: Arrays = SENT, **more: Any) -> RecordDict:
    return RecordDict({"arrays": record(arrays), "config": ConfigRecord({"clipping_norm": norm}), **more})


def arrays_of(reply: Message) -> Any:
    assert not reply.has_error(), reply.error
    return reply.content.array_records["arrays"]["0"].numpy()


# -- clipping ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mod", [fixedclipping_mod, adaptiveclipping_mod])
def test_a_longer_update_is_clipped_and_a_shorter_one_is_not_touched(mod: Mod) -> None:
    long = ask(replying(single(4.0, 5.0), mod), asked())
    np.testing.assert_allclose(arrays_of(long), [1.6, 1.8], rtol=1e-12)
    short = ask(replying(single(1.3, 1.4), mod), asked())
    assert arrays_of(short).tobytes() == single(1.3, 1.4)["0"].tobytes()
    bits = [reply.content.metric_records["metrics"].get("norm_bit") for reply in (long, short)]
    assert bits == ([1, 0] if mod is adaptiveclipping_mod else [None, None])


@pytest.mark.parametrize("mod", [fixedclipping_mod, adaptiveclipping_mod, LocalDpMod(1.0, 1.0, 0.5, 1e-5)])
def test_messages_that_do_not_train_pass_as_they_are(mod: Mod) -> None:
    reply = ask(replying(single(4.0, 5.0), mod), RecordDict(), "evaluate")
    np.testing.assert_array_equal(arrays_of(reply), [4.0, 5.0])


@pytest.mark.parametrize("mod", [fixedclipping_mod, adaptiveclipping_mod, LocalDpMod(1.0, 1.0, 0.5, 1e-5)])
def test_an_error_of_the_function_inside_passes_as_it_is(mod: Mod) -> None:
    app = ClientApp(mods=[mod])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(Error(1000, "no data"), reply_to=message)

    reply = ask(app, asked())
    assert (reply.error.code, reply.error.reason) == (1000, "no data")


CASES: list[tuple[Callable[[], RecordDict], Arrays, str]] = [
    (lambda: RecordDict({"config": ConfigRecord({"clipping_norm": 1.0})}), SENT, "the message has 0 ArrayRecords"),
    (lambda: asked(other=record(SENT)), SENT, "the message has 2 ArrayRecords instead of one"),
    (lambda: RecordDict({"arrays": record(SENT)}), SENT, "the message has 0 ConfigRecords instead of one"),
    (lambda: asked("1"), SENT, "must wrap its strategy in DifferentialPrivacyClientSideFixedClipping"),
    (lambda: asked(True), SENT, "no 'clipping_norm' above 0"),
    (lambda: asked(0.0), SENT, "no 'clipping_norm' above 0"),
    (asked, {"1": np.zeros(2)}, "lacks '0'"),
    (asked, {"0": np.zeros(3)}, "shape (3,) instead of (2,)"),
    (asked, {"0": np.array([1.0, math.nan])}, "not finite"),
]


@pytest.mark.parametrize(("content", "arrays", "why"), CASES)
def test_what_cannot_be_clipped_is_an_error(content: Callable[[], RecordDict], arrays: Arrays, why: str) -> None:
    for mod in (fixedclipping_mod, adaptiveclipping_mod):
        error = ask(replying(arrays, mod), content()).error
        assert error.code == ErrorCode.MOD_FAILED_PRECONDITION
        assert why in str(error.reason)


def test_a_reply_of_several_records_is_an_error() -> None:
    error = ask(replying(SENT, fixedclipping_mod, more=record(SENT)), asked()).error
    assert "the reply has 2 ArrayRecords instead of one" in str(error.reason)
    error = ask(replying(SENT, adaptiveclipping_mod, more=MetricRecord()), asked()).error
    assert "the reply has 2 MetricRecords instead of one" in str(error.reason)
    error = ask(replying({"1": np.zeros(2)}, LocalDpMod(1.0, 1.0, 0.5, 1e-5)), asked()).error
    assert "LocalDpMod cannot clip: its ArrayRecord lacks '0'" in str(error.reason)


# -- local differential privacy ----------------------------------------------------------------------------------------


def test_local_noise_has_the_deviation_of_dwork_and_roth_2014_theorem_a_1() -> None:
    mod = LocalDpMod(clipping_norm=1.0, sensitivity=2.0, epsilon=0.5, delta=1e-5)
    assert mod.deviation == pytest.approx(2.0 * math.sqrt(2 * math.log(1.25 / 1e-5)) / 0.5, rel=1e-12)
    zeros = {"0": np.zeros(40_000)}
    noise = arrays_of(ask(replying(zeros, mod), RecordDict({"arrays": record(zeros)})))
    assert float(noise.std()) == pytest.approx(mod.deviation, rel=0.02)
    again = arrays_of(ask(replying(zeros, mod), RecordDict({"arrays": record(zeros)})))
    assert (noise != again).all()


def test_local_clipping_comes_before_the_noise() -> None:
    mod = LocalDpMod(clipping_norm=1.0, sensitivity=0.0, epsilon=0.5, delta=1e-5)
    np.testing.assert_allclose(arrays_of(ask(replying(single(4.0, 5.0), mod), asked())), [1.6, 1.8], rtol=1e-12)


def test_local_noise_of_a_given_seed_follows_from_node_and_message() -> None:
    mod = LocalDpMod(1.0, 1.0, 0.5, 1e-5, seed=7)

    def noise(node: str) -> bytes:
        context = Context(run_id=1, node_id=node, node_config={}, state=RecordDict(), run_config={})
        noised: bytes = arrays_of(ask(replying(SENT, mod), asked(), context=context)).tobytes()
        return noised

    assert noise("a") == noise("a") != noise("b")


@pytest.mark.parametrize(
    "wrong", [{"clipping_norm": 0.0}, {"sensitivity": -1.0}, {"epsilon": 0.0}, {"delta": 0.0}, {"delta": 1.0}], ids=str
)
def test_budgets_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LocalDpMod(**{"clipping_norm": 1.0, "sensitivity": 1.0, "epsilon": 0.5, "delta": 1e-5, **wrong})  # type: ignore[arg-type]


def test_an_epsilon_for_which_the_theorem_does_not_hold_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    LocalDpMod(1.0, 1.0, 3.0, 1e-5)
    assert "for an epsilon below 1, not for 3" in caplog.text


# -- sizes -------------------------------------------------------------------------------------------------------------


def test_sizes_of_message_and_reply_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="fedq.apps.mod"):
        ask(replying(single(1.0, 2.0, 3.0), message_size_mod), RecordDict({"arrays": record(SENT)}))
        ask(replying(single(1.0, 2.0, 3.0), arrays_size_mod), RecordDict({"arrays": record(SENT)}))
    assert parameters_size_mod is arrays_size_mod
    assert [message for message in caplog.messages if "coming" in message or "going" in message] == [
        "incoming message: 17 bytes",
        "outgoing message: 45 bytes",
        "incoming arrays 'arrays': 2 numbers, 17 bytes",
        "incoming arrays: 17 bytes in all",
        "outgoing arrays 'arrays': 3 numbers, 25 bytes",
        "outgoing arrays: 25 bytes in all",
    ]


def test_an_error_has_no_size(caplog: pytest.LogCaptureFixture) -> None:
    app = ClientApp(mods=[message_size_mod, arrays_size_mod])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(Error(1000, "no data"), reply_to=message)

    with caplog.at_level(logging.INFO, logger="fedq.apps.mod"):
        assert ask(app, RecordDict()).error.code == 1000
    assert "outgoing message: an error" in caplog.text


# -- limits ------------------------------------------------------------------------------------------------------------


def says(reply: Message) -> str:
    assert reply.error.code == ErrorCode.MOD_FAILED_PRECONDITION
    return str(reply.error.reason)


def test_an_owners_own_norm_needs_no_word_of_the_server() -> None:
    content = RecordDict({"arrays": record(SENT)})
    np.testing.assert_allclose(arrays_of(ask(replying(single(4.0, 5.0), ClippingMod(1.0)), content)), [1.6, 1.8])
    assert "has 0 ArrayRecords" in says(ask(replying(SENT, ClippingMod(1.0)), RecordDict()))
    with pytest.raises(ValueError, match="above 0"):
        ClippingMod(0.0)


def test_a_reply_beyond_its_size_is_refused() -> None:
    # "arrays" + 16 bytes, "metrics" + "num-examples" + 8 bytes, and the names of the arrays
    size = sum(len(k) + r.count_bytes() for k, r in ask(replying(SENT, SizeLimitMod(10**6)), asked()).content.items())
    assert not ask(replying(SENT, SizeLimitMod(size)), asked()).has_error()
    assert says(ask(replying(SENT, SizeLimitMod(size - 1)), asked())) == (
        f"the reply has {size} bytes, and {size - 1} are allowed"
    )


@pytest.mark.parametrize("pattern", ["arr*", "num-examples", "metrics/num-*"])
def test_denied_names_are_refused(pattern: str) -> None:
    assert f"{pattern!r} may not leave" in says(ask(replying(SENT, DenyKeysMod("x", pattern)), asked()))
    assert not ask(replying(SENT, DenyKeysMod("NUM*", "loss")), asked()).has_error()


def test_denied_names_and_sizes_hold_for_the_context_too() -> None:
    app = replying(SENT, DenyKeysMod("patients"))
    context = Context(
        run_id=1, node_id="a", node_config={}, state=RecordDict({"patients": ConfigRecord()}), run_config={}
    )
    assert "the Context holds 'patients'" in says(ask(app, asked(), context=context))
    assert "the Context has" in says(ask(replying(SENT, SizeLimitMod(1000, 3)), asked(), context=context))


def test_only_allowed_names_pass() -> None:
    assert not ask(replying(SENT, AllowKeysMod("arrays/*", "metrics/num-examples")), asked()).has_error()
    assert "holds 'metrics/num-examples'" in says(ask(replying(SENT, AllowKeysMod("arrays/*")), asked()))


def test_a_context_that_a_list_of_allowed_names_does_not_look_at_is_kept_empty_by_a_limit_of_nothing() -> None:
    app = ClientApp(mods=[SizeLimitMod(10**6, 0), AllowKeysMod("arrays/*")])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        if message.content.config_records["config"]["clipping_norm"] > 1.0:  # type: ignore[operator]
            context.state["patients"] = ConfigRecord()
        return Message(RecordDict({"arrays": record(SENT)}), reply_to=message)

    assert not ask(app, asked(1.0)).has_error()
    assert "the Context has 8 bytes, and 0 are allowed" in says(ask(app, asked(2.0)))


def test_arrays_may_be_kept_to_training() -> None:
    app = replying(SENT, train_arrays_only_mod)
    assert not ask(app, asked()).has_error()
    assert "type 'evaluate' holds arrays" in says(ask(app, asked(), "evaluate"))
