"""A relay that puts an older Context of a node back gets one answer in each stage, from a node that keeps a ledger."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedq.apps import Array, ArrayRecord, Message, RecordDict
from fedq.apps.message import make_message
from fedq.apps.mod.secaggplus import _told as told
from fedq.apps.secagg import stages
from fedq.apps.strategy import NoUsableReplies
from tests.apps.strategies.watched import Watched

NODES = 5
SESSION = "strategy 1, round 1"
Questions = Callable[[Watched, dict[str, Any]], dict[str, Any]]


class PuttingBack:
    """A run whose relay, behind one stage, puts all Contexts back to what they were before it and asks again."""

    def __init__(self, stage: str, again: Questions, ledgers: Path | None) -> None:
        self.watched = Watched(NODES, node_config=lambda number: config(ledgers, number))
        self.first: list[Message] = []
        self.second: list[Message] = []
        honest, nodes = self.watched.strategy._ask, self.watched.federation.nodes.values()

        def ask(asked: str, payloads: dict[str, Any]) -> Any:
            before = {node.name: dict(node._contexts) for node in nodes}
            replies = list(honest(asked, payloads))
            if asked == stage:
                after = {node.name: dict(node._contexts) for node in nodes}
                put(before)
                self.first = replies
                self.second = list(honest(asked, again(self.watched, payloads)))
                put(after)
            return iter(replies)

        def put(contexts: dict[str, dict[int, bytes]]) -> None:
            for node in nodes:
                node._contexts = dict(contexts[node.name])

        self.watched.strategy._ask = ask  # type: ignore[method-assign]
        self.watched.execute()
        assert np.array_equal(self.watched.sums[0], self.watched.expected(range(NODES)))

    @property
    def refusals(self) -> list[str]:
        """Why nodes did not answer the second time."""
        return [str(reply.error.reason) for reply in self.second if reply.has_error()]


def config(ledgers: Path | None, number: int) -> dict[str, Any]:
    return {} if ledgers is None else {"secagg-ledger-file": str(ledgers / f"ledger-{number}")}


def same(watched: Watched, payloads: dict[str, Any]) -> dict[str, Any]:
    return payloads


def the_other_secret(watched: Watched, payloads: dict[str, Any]) -> dict[str, Any]:
    """Ask for the mask key of node-0, whose seed was asked for."""
    return {
        node: stages.UnmaskRequest([other for other in asked.survivors if other != "node-0"], ["node-0"])
        for node, asked in payloads.items()
        if node != "node-0"
    }


def another_model(watched: Watched, payloads: dict[str, Any]) -> dict[str, Any]:
    """Have the nodes train from another model, under the masks that they have used."""
    for node, message in watched.strategy._messages.items():
        arrays = {
            name: Array(np.asarray(array.numpy() + 1.0))
            for name, array in message.content.array_records["arrays"].items()
        }
        content = RecordDict({**message.content, "arrays": ArrayRecord(arrays)})
        watched.strategy._messages[node] = make_message(message.metadata, content)
    return payloads


def other_neighbours(watched: Watched, payloads: dict[str, Any]) -> dict[str, Any]:
    return {node: stages.ShareRequest(3, dict(list(asked.neighbours.items())[:3])) for node, asked in payloads.items()}


def shares_of(replies: list[Message], kind: str) -> list[Any]:
    """The shares of one secret of node-0 that nodes have revealed."""
    revealed = [
        stages.payload(reply.content, stages.UNMASK, SESSION, stages.RevealedShares)
        for reply in replies
        if not reply.has_error()
    ]
    return [getattr(one, kind)["node-0"] for one in revealed if "node-0" in getattr(one, kind)]


@pytest.mark.parametrize(
    ("stage", "again"),
    [
        (stages.SHARE, other_neighbours),
        (stages.COLLECT, another_model),
        (stages.UNMASK, the_other_secret),
    ],
    ids=["share", "collect", "unmask"],
)
def test_a_node_with_a_ledger_answers_no_other_question_in_the_same_stage(
    stage: str, again: Questions, tmp_path: Path
) -> None:
    found = PuttingBack(stage, again, tmp_path)
    assert len(found.refusals) == len(found.second) >= NODES - 1
    assert all("its Context was put back" in reason for reason in found.refusals)


@pytest.mark.parametrize("stage", [stages.SHARE, stages.COLLECT, stages.UNMASK])
def test_the_same_question_is_answered_again_as_after_a_lost_worker(stage: str, tmp_path: Path) -> None:
    found = PuttingBack(stage, same, tmp_path)
    assert found.refusals == []
    assert len(found.second) == NODES


def test_without_a_ledger_such_a_relay_has_both_secrets_of_a_node() -> None:
    """What the ledger is for; the tests above would see nothing else."""
    found = PuttingBack(stages.UNMASK, the_other_secret, None)
    needed = found.watched.strategy.shares_needed(NODES - 1)
    assert len(shares_of(found.first, "seeds")) >= needed
    assert len(shares_of(found.second, "keys")) >= needed


def test_a_question_is_another_where_one_number_of_a_large_model_is() -> None:
    model = np.zeros(100_000)
    asked = told(RecordDict({"arrays": ArrayRecord([model])}))
    assert asked == told(RecordDict({"arrays": ArrayRecord([model.copy()])}))
    model[77_777] = 1.0
    assert asked != told(RecordDict({"arrays": ArrayRecord([model])}))
    assert len(asked) < 1000


def test_a_ledger_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    watched = Watched(NODES, node_config=lambda number: config(tmp_path / "missing", number))
    with pytest.raises(NoUsableReplies, match="'secagg-ledger-file' of the node config names cannot be used"):
        watched.execute()
