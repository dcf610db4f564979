"""What a ClientApp logs, prints and raises stands in the run's log of that node, before its reply does, unless the
operator says no.

Once the reply is there the run may be over, and takes no line any more.
"""

from __future__ import annotations

from typing import Any

import pytest

from fedq.relay import events
from tests.node.conftest import FORK_OR_ALL, Federation, HandRun
from tests.support.waiting import wait_until


def lines(run: HandRun, node: str = "clinic-a") -> list[dict[str, Any]]:
    return [event.data for event in events.read_log(run.relay, node, run.run, count=5000)]


@pytest.mark.parametrize("isolation", FORK_OR_ALL)
def test_prints_and_log_records_arrive(federation: Federation, isolation: str) -> None:
    federation.site(isolation=isolation)
    run = federation.run()

    message = run.push("clinic-a", "train.talk", run.config())

    run.content(message)
    assert [(line["level"], line["origin"], line["text"]) for line in lines(run)] == [
        ("INFO", "stdout", "training begins"),
        ("INFO", "digits", "loss 0.25"),
        ("INFO", "stderr", "careful"),
        ("INFO", "stdout", "no line break"),
    ]
    assert {(line["node"], line["message"], line["type"]) for line in lines(run)} == {
        ("clinic-a", message, "train.talk")
    }


@pytest.mark.parametrize("isolation", FORK_OR_ALL)
def test_the_last_line_is_there_when_the_reply_is(federation: Federation, isolation: str) -> None:
    federation.site(isolation=isolation)
    run = federation.run()

    run.content(run.push("clinic-a", "train.chatter", run.config()))

    assert [line["text"] for line in lines(run)][-1] == "1899"


def test_a_traceback_arrives_as_error_lines(federation: Federation) -> None:
    federation.site()
    run = federation.run()

    run.error(run.push("clinic-a", "train.fail", run.config()))

    assert any("in fail" in line["text"] for line in lines(run))
    assert {line["level"] for line in lines(run)} == {"ERROR"}


def test_an_operator_can_keep_logs_on_the_node(federation: Federation) -> None:
    site = federation.site(ship_logs=False)
    run = federation.run()

    run.content(run.push("clinic-a", "train.talk", run.config()))

    wait_until(lambda: "training begins" in site.service.output(), "the line is in the service's own output")
    assert lines(run) == []
