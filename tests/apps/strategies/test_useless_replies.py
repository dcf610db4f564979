"""Whatever a node replies is at worst a counted failure: it ends no run, whichever strategy trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fedq.apps import Array, ArrayRecord, ClientApp, Context, Grid, Message, MetricRecord, RecordDict, ServerApp
from fedq.apps.array import COMPRESSED
from fedq.apps.compression import SPARSE
from fedq.apps.strategy import FedAsync, FedBuff
from fedq.apps.testing import Federation
from tests.apps.strategies.cases import CASES, FIXED_AT_SERVER, NODES, Case
from tests.apps.strategies.scripted import record, scripted_app

HOSTILE = "node-2"


def first(change: Callable[[Array], Array]) -> Callable[[RecordDict], None]:
    def changed(content: RecordDict) -> None:
        arrays = content.array_records["arrays"]
        name = next(iter(arrays))
        arrays[name] = change(arrays[name])

    return changed


def unreadable(stype: str) -> Callable[[RecordDict], None]:
    return first(lambda array: Array("float32", array.shape, stype, b"junk"))


def weighing(weight: float) -> Callable[[RecordDict], None]:
    return lambda content: content.metric_records["metrics"].update({"num-examples": weight})


USELESS: dict[str, Callable[[RecordDict], Any]] = {
    "not a number": first(lambda array: Array(np.full(array.shape, np.nan))),
    "another shape": first(lambda array: Array(np.zeros(7))),
    "complex numbers": first(lambda array: Array(np.ones(array.shape, np.complex64))),
    "bytes that are no array": unreadable("numpy.ndarray"),
    "a format that nobody knows": unreadable("mine"),
    "compressed, but damaged": unreadable(COMPRESSED),
    "sparse, but of no model": unreadable(SPARSE),
    "an array less": lambda content: content.array_records["arrays"].popitem(),
    "an array more": lambda content: content.array_records["arrays"].update({"more": Array(np.zeros(2))}),
    "no records": lambda content: content.clear(),
    "two ArrayRecords": lambda content: content.update({"more": ArrayRecord([np.zeros(2)])}),
    "two MetricRecords": lambda content: content.update({"more": MetricRecord({"num-examples": 1})}),
    "no weight": lambda content: content.metric_records["metrics"].pop("num-examples"),
    "a negative weight": weighing(-1.0),
    "a weight that is no number": weighing(float("nan")),
}
QUICK = ("FedAvg", "FedMedian", "MultiKrum", "FedXgbBagging", "QFedAvg", FIXED_AT_SERVER, "CompressedBroadcast")
"""Those that look at replies in ways of their own; the others do as one of them does."""
WAYS = [
    pytest.param(case, case.make, 1, marks=[] if str(case) in QUICK else pytest.mark.slow, id=str(case))
    for case in CASES
    if case.name != "FedXgbCyclic"  # takes what the one node that it asks replies, and nobody is left to fail
] + [
    pytest.param(CASES[0], lambda **options: FedBuff(NODES - 1, **options), 2, id="FedBuff"),
    pytest.param(CASES[0], lambda **options: FedAsync(**options), NODES, id="FedAsync"),
]
"""Each with the number of rounds in which the node is asked once."""


@pytest.mark.parametrize(("case", "make", "rounds_each"), WAYS)
def test_a_useless_reply_is_a_counted_failure_and_the_others_make_the_model(
    case: Case, make: Any, rounds_each: int
) -> None:
    initial, rounds = case.rounds("float32")
    scripted = scripted_app([rounds[0]] * 200)
    kinds, made = list(USELESS), list[str]()
    number = (len(kinds) + 1) * rounds_each
    app, server = ClientApp(mods=list(case.mods)), ServerApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        reply = scripted(message, context)
        if context.node_id == HOSTILE and len(made) < len(kinds):
            made.append(kinds[len(made)])
            USELESS[made[-1]](reply.content)
        return reply

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        make(fraction_evaluate=0.0, max_failed_rounds=None).start(grid, record(initial), num_rounds=number)

    run = Federation(NODES).run(server, app)

    assert made == kinds
    failed = [event.data for event in run.events if event.kind == "reply-failed"]
    assert [reply["node"] for reply in failed] == [HOSTILE] * len(kinds), [reply["reason"] for reply in failed]
    for array in run.result.arrays.values():
        assert np.isfinite(array.numpy()).all()
