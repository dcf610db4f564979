"""Mods that a SuperNode imposes are around every app, in every isolation; what they refuse does not leave."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedq.apps import ClientApp, Context, ErrorCode, Message, MetricRecord, RecordDict
from fedq.node.imposed import Imposed, ModsDiffer, check_same
from fedq.node.modname import ModName, SettingsError
from fedq.relay import nodes
from tests.node.conftest import FORK_OR_ALL, Federation
from tests.support.waiting import wait_until

OWNER = "owner_mods"
"""A module in a folder that PYTHONPATH names."""


@pytest.mark.parametrize("isolation", FORK_OR_ALL)
def test_they_see_every_reply_outside_of_the_apps_own_mods(federation: Federation, isolation: str) -> None:
    mods = ["fedq.apps.mod:ClippingMod(0.5)", f"{OWNER}:marked('outer')", f"{OWNER}:marked('inner')"]
    federation.site(isolation=isolation, mods=mods)
    run = federation.run()

    reply = run.content(run.push("clinic-a", "train", run.arrays(np.zeros(4))))

    # The app adds one to each of four numbers: an update of norm 2.
    np.testing.assert_allclose(reply.array_records["arrays"].to_numpy_ndarrays()[0], 0.25)
    assert dict(reply.metric_records["owner"]) == {"outer": 2}
    (node,) = nodes.list_nodes(federation.relay)
    assert list(node.info.mods) == mods


@pytest.mark.parametrize("isolation", FORK_OR_ALL)
def test_what_they_refuse_is_answered_by_an_error_and_leaves_the_context(
    federation: Federation, isolation: str
) -> None:
    federation.site(isolation=isolation, mods=["fedq.apps.mod:DenyKeysMod('arr*')", "fedq.apps.mod:SizeLimitMod(500)"])
    run = federation.run()

    denied = run.error(run.push("clinic-a", "train.echo", run.arrays(np.zeros(4))))
    large = run.error(run.push("clinic-a", "train.echo", run.arrays(np.zeros(400))))

    assert denied.code == large.code == ErrorCode.MOD_FAILED_PRECONDITION
    assert denied.reason == (
        "node clinic-a does not let this reply out: the reply holds 'arrays', and 'arr*' may not leave this node "
        "(fedq.apps.mod:DenyKeysMod('arr*'), imposed by its operator)"
    )
    assert "and 500 are allowed" in str(large.reason)
    assert run.metrics(run.push("clinic-a", "query", run.config()))["count"] == 1


@pytest.mark.parametrize("isolation", FORK_OR_ALL)
def test_one_that_fails_lets_nothing_out_and_keeps_its_words(federation: Federation, isolation: str) -> None:
    site = federation.site(isolation=isolation, mods=[f"{OWNER}:broken"])
    run = federation.run()

    error = run.error(run.push("clinic-a", "train.echo", run.arrays(np.zeros(4))))

    assert error.code == ErrorCode.MOD_FAILED_PRECONDITION
    assert error.reason == (
        f"the mod {OWNER}:broken, which node clinic-a imposes, failed with KeyError; nothing was sent, and what "
        "it said stands in the node's log"
    )
    assert error.traceback is None
    site.service.wait_until(lambda: "the name of a patient" in site.service.output(), "the log has the words")


@pytest.mark.parametrize("isolation", FORK_OR_ALL)
def test_what_an_app_says_when_it_fails_can_be_kept_back(federation: Federation, isolation: str) -> None:
    site = federation.site(isolation=isolation, mods=["fedq.apps.mod:withhold_error_text_mod"])
    run, broken = federation.run(), federation.run(b"no bundle at all")

    raised = run.error(run.push("clinic-a", "train.fail", run.config()))
    unloadable = broken.error(broken.push("clinic-a", "train", broken.config()))

    text = "the ClientApp failed; node clinic-a keeps the text, which stands in its log"
    assert (raised.code, raised.reason, raised.traceback) == (ErrorCode.CLIENT_APP_RAISED_EXCEPTION, text, None)
    assert (unloadable.code, unloadable.reason) == (ErrorCode.LOAD_CLIENT_APP_EXCEPTION, text)
    site.service.wait_until(lambda: "no data for this patient" in site.service.output(), "the log has the words")


def test_a_worker_with_other_mods_does_not_serve(federation: Federation) -> None:
    federation.site(mods=["fedq.apps.mod:ClippingMod(1.0)"])

    refused = federation.site(what="worker", mods=["fedq.apps.mod:ClippingMod(2.0)"], wait=False)

    wait_until(lambda: not refused.service.running, "the worker has ended", timeout=30)
    assert "this worker the mods fedq.apps.mod:ClippingMod(2.0)" in refused.service.output()
    assert "(--mod 'fedq.apps.mod:ClippingMod(1.0)')" in refused.service.output()


def test_a_worker_that_was_there_first_ends_when_the_supernode_imposes_other_mods(federation: Federation) -> None:
    worker = federation.site(what="worker", wait=False, heartbeat=0.5)
    worker.service.wait_until(lambda: worker.online(), "the worker stands in")
    federation.site(mods=["fedq.apps.mod:ClippingMod(1.0)"], heartbeat=0.5)
    wait_until(lambda: not worker.service.running, "the worker has ended", timeout=30)
    assert "has to be started with the same" in worker.service.output()
    wait_until(lambda: nodes.node_names(federation.relay), "the SuperNode has registered")


def test_a_node_does_not_start_without_its_mods(federation: Federation) -> None:
    site = federation.site(mods=["no_such_module:mod"], wait=False)
    wait_until(lambda: not site.service.running, "it has ended", timeout=30)
    assert "there is no module 'no_such_module' here" in site.service.output()
    assert nodes.node_names(federation.relay) == []


# -- names -------------------------------------------------------------------------------------------------------------


def test_a_name_has_one_normal_form() -> None:
    text = "fedq.apps.mod:LocalDpMod(1.0, 2.0, epsilon=0.5, delta=1e-05)"
    assert ModName.parse(" fedq.apps.mod: LocalDpMod( 1.0,2.0,epsilon = .5, delta=1e-5)").text == text
    assert ModName.parse(text).text == text


@pytest.mark.parametrize(
    "text",
    ["", "mod", "a.b", ":mod", "a-b:mod", "a:", "a:b(c)", "a:b(__import__('os'))", "a:b(*[1])", "a:b(**{})", "a:1"],
)
def test_what_names_no_mod_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="names no mod"):
        ModName.parse(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("fedq.apps.mod:nothing", "has no 'nothing'"),
        ("fedq.apps.mod:SizeLimitMod", "is a class: write its arguments too"),
        ("fedq.apps.mod:SizeLimitMod('x')", "making it fails with ValueError"),
        ("math:sqrt", "is no mod: it must be callable"),
    ],
)
def test_what_is_no_mod_is_refused(text: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        ModName.parse(text).load()


def test_a_worker_needs_the_same_mods_in_the_same_order() -> None:
    check_same("a", ["x:y"], None)
    check_same("a", ["x:y", "x:z"], ("x:y", "x:z"))
    with pytest.raises(ModsDiffer):
        check_same("a", ["x:z", "x:y"], ["x:y", "x:z"])


# -- by accident -------------------------------------------------------------------------------------------------------


def test_an_app_that_changes_its_message_or_its_reply_afterwards_does_not_reach_them() -> None:
    kept: list[RecordDict] = []
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        message.content.clear()
        kept.append(RecordDict({"metrics": MetricRecord({"loss": 1.0})}))
        return Message(kept[0], reply_to=message)

    seen: list[Any] = []

    def look(message: Message, context: Context, call_next: Any) -> Message:
        reply: Message = call_next(message, context)
        kept[0]["metrics"] = MetricRecord({"secret": 1})
        seen.extend([list(message.content), dict(reply.content["metrics"])])
        return reply

    imposed = Imposed(())
    imposed.mods = (("look", look),)
    context = Context(run_id=1, node_id="a", node_config={}, state=RecordDict(), run_config={})
    message = Message(RecordDict({"config": MetricRecord({"n": 1})}), "a", "train")
    assert not imposed.answer(app, message, context).has_error()
    assert seen == [["config"], {"loss": 1.0}]
