"""Whatever goes wrong with a ClientApp comes back as one error reply, and leaves the Context alone."""

from __future__ import annotations

import os
import sys
import time
import types
from inspect import signature
from typing import Any

import numpy as np
import pytest

from fedq.apps import ClientApp, Context, ErrorCode, Message, RecordDict
from fedq.apps.digest import digest_of
from fedq.relay import messages
from fedq.relay.superlink import SuperLink
from tests.node.conftest import FORK_OR_ALL, Federation, HandRun
from tests.support.waiting import wait_until

pytestmark = pytest.mark.every_isolation

ISOLATIONS = ("fork", "run", "inline")


def still_works(run: HandRun, count: int) -> None:
    """The next good message of the run is answered, and the Context has seen ``count`` good ones."""
    assert run.metrics(run.push("clinic-a", "train", run.arrays(np.zeros(2))))["count"] == count


@pytest.mark.parametrize("isolation", FORK_OR_ALL)
def test_an_exception_comes_back_with_its_traceback_and_leaves_the_context(
    federation: Federation, isolation: str
) -> None:
    site = federation.site(isolation=isolation)
    run = federation.run()
    still_works(run, 1)

    message = run.push("clinic-a", "train.fail", run.config())

    error = run.error(message)
    assert error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert error.reason == "ValueError: no data for this patient"
    assert error.traceback is not None
    assert "in fail" in error.traceback
    assert run.wait_for(message).attempt == 1
    still_works(run, 2)
    job = site.ended_job(message)
    assert job.get_status() == "failed"
    assert "no data for this patient" in (job.latest_result().exc_string or "")  # type: ignore[union-attr]


def test_mistakes_of_the_app_have_codes_of_their_own(federation: Federation) -> None:
    federation.site()
    run = federation.run()
    sent = {
        name: run.push("clinic-a", name, run.config()) for name in ("train.leave", "train.nothing", "train.unheard")
    }

    left, nothing, unheard = (run.error(sent[name]) for name in sent)

    assert (left.code, left.reason) == (ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "the ClientApp called sys.exit(3)")
    assert nothing.code == ErrorCode.INVALID_REPLY
    assert "returned None" in str(nothing.reason)
    assert unheard.code == ErrorCode.UNKNOWN_ACTION
    assert "'train.unheard'" in str(unheard.reason)
    still_works(run, 1)


def test_a_bundle_that_does_not_load_is_named_and_another_run_works(federation: Federation) -> None:
    federation.site()
    broken, good = federation.run(b"no bundle at all"), federation.run()

    error = broken.error(broken.push("clinic-a", "train", broken.config()))

    assert error.code == ErrorCode.LOAD_CLIENT_APP_EXCEPTION
    assert error.reason
    still_works(good, 1)


def test_a_package_that_the_node_lacks_is_named(federation: Federation) -> None:
    federation.site()
    lacking = types.ModuleType("imaginary_package")
    exec("def helper(): pass", lacking.__dict__)
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        lacking.helper()
        return Message(RecordDict(), reply_to=message)

    sys.modules["imaginary_package"] = lacking
    try:
        run = federation.run(app)
    finally:
        del sys.modules["imaginary_package"]

    error = run.error(run.push("clinic-a", "train", run.config()))

    assert error.code == ErrorCode.LOAD_CLIENT_APP_EXCEPTION
    assert "'imaginary_package'" in str(error.reason)


def test_a_payload_that_cannot_be_read_is_answered(federation: Federation) -> None:
    federation.site()
    run = federation.run()
    message = messages.message_id(run.run, 0, 0, 0, "clinic-a")
    out = [messages.Outgoing(message, "clinic-a", 0, "train", "1", 60.0)]
    messages.push(run.relay, run.run, run.token, 0, 0, [messages.Content(b"no wire data")], out)
    run.sent[message] = "clinic-a"
    run.calls = 1

    error = run.error(message)

    assert error.code == ErrorCode.UNDECODABLE_PAYLOAD
    still_works(run, 1)


def test_an_app_that_is_not_trusted_never_runs(federation: Federation) -> None:
    trusted = federation.pack()
    federation.site(pinned=[digest_of(trusted)])
    stranger, friend = federation.run(trusted + b" "), federation.run(trusted)

    error = stranger.error(stranger.push("clinic-a", "train", stranger.config()))

    assert error.code == ErrorCode.APP_NOT_TRUSTED
    assert "pinned" in str(error.reason)
    still_works(friend, 1)


def test_the_node_checks_the_runs_selector_again(federation: Federation) -> None:
    federation.site(labels={"site": "eu"})
    foreign, own = federation.run(selector={"site": "us"}), federation.run(selector={"site": "eu"})

    error = foreign.error(foreign.push("clinic-a", "train", foreign.config()))

    assert error.code == ErrorCode.NODE_UNAVAILABLE
    assert "site=us" in str(error.reason)
    still_works(own, 1)


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_a_hung_app_is_killed_at_its_time_limit_and_answered(federation: Federation, isolation: str) -> None:
    federation.site(isolation=isolation)
    run = federation.run(time_limit=0.6)

    message = run.push("clinic-a", "train.hang", run.config())

    error = run.error(message)
    assert error.code == ErrorCode.TIME_LIMIT
    assert "0.6 s" in str(error.reason)
    assert run.wait_for(message).attempt == 1
    still_works(run, 1)
    (note,) = run.notes()
    pid = int(note.split()[-1])
    wait_until(lambda: not alive(pid), "the hung process is gone")


class Hangs:
    """What does not come back from being unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return time.sleep, (3600,)


def test_an_app_that_hangs_while_it_is_loaded_is_answered_at_the_time_limit(federation: Federation) -> None:
    federation.site()
    app = ClientApp()
    app.rest = Hangs()  # type: ignore[attr-defined]
    run = federation.run(app, time_limit=0.6)

    assert run.error(run.push("clinic-a", "train", run.config())).code == ErrorCode.TIME_LIMIT


def test_the_nodes_own_limit_holds_where_the_run_has_none(federation: Federation) -> None:
    federation.site(time_limit=0.5)
    run = federation.run()

    assert run.error(run.push("clinic-a", "train.hang", run.config())).code == ErrorCode.TIME_LIMIT


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_a_killed_app_is_tried_again_and_answered_once(federation: Federation, isolation: str) -> None:
    site = federation.site(isolation=isolation)
    run = federation.run()

    message = run.push("clinic-a", "train.die", run.config(times=2))

    assert run.metrics(message)["count"] == 1
    assert run.wait_for(message).attempt == 3
    assert len(run.notes()) == 3
    assert run.relay.redis.xlen(run.relay.keys.replies("clinic-a", run.run)) == 1
    assert site.ended_job(message, 1).get_status() == "failed"
    assert site.ended_job(message, 3).get_status() == "finished"


@pytest.mark.parametrize("isolation", FORK_OR_ALL)
def test_an_app_that_always_dies_is_answered_after_its_last_try(federation: Federation, isolation: str) -> None:
    tries = signature(SuperLink.submit).parameters["max_deliveries"].default
    federation.site(isolation=isolation)
    run = federation.run()  # with the default limit

    message = run.push("clinic-a", "train.die", run.config(times=99))

    error = run.error(message)
    assert error.code in (ErrorCode.CLIENT_APP_CRASHED, ErrorCode.MAX_DELIVERIES)
    if isolation != "inline":
        assert error.code == ErrorCode.CLIENT_APP_CRASHED
        assert "SIGKILL" in str(error.reason)
    assert run.wait_for(message).attempt == len(run.notes()) == tries == 5
    still_works(run, 1)


def test_a_message_whose_time_was_up_is_answered_by_the_node(federation: Federation) -> None:
    run = federation.run()
    message = run.push("clinic-a", "train", RecordDict(), ttl=0.05) if registered(federation) else ""
    wait_until(lambda: run.relay.now() > deadline(run, message), "the message has expired")

    federation.site()

    assert run.error(message).code == ErrorCode.MESSAGE_EXPIRED
    assert run.wait_for(message).attempt == 0


def test_a_stopped_run_ends_its_app_within_two_seconds(federation: Federation) -> None:
    federation.site()
    run, other = federation.run(), federation.run()
    run.push("clinic-a", "train.hang", run.config())
    wait_until(run.notes, "the app runs")
    (note,) = run.notes()

    run.stop()

    wait_until(lambda: not alive(int(note.split()[-1])), "the app is gone", timeout=30)
    still_works(other, 1)


def registered(federation: Federation, name: str = "clinic-a") -> bool:
    from fedq.relay import nodes

    nodes.add(federation.relay, name)
    return True


def deadline(run: HandRun, message: str) -> float:
    return messages.outstanding(run.relay, run.run)[message].deadline


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
