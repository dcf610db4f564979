"""Runs in an environment that has Flower: gives Flower's strategies the replies of a file and writes what they make.

python flower_side.py CASES.json ARRAYS.npz OUT.json OUT.npz
"""

from __future__ import annotations

import inspect
import json
import random
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict  # type: ignore
from flwr.clientapp import mod  # type: ignore
from flwr.serverapp import strategy  # type: ignore
from flwr.serverapp.strategy import fedopt  # type: ignore
from flwr.supercore.task_identity import TaskIdentity  # type: ignore


class Nodes:
    """What a strategy needs of a Grid before it sends: the nodes."""

    def __init__(self, number: int) -> None:
        self.number = number

    def get_node_ids(self) -> list[int]:
        return list(range(1, self.number + 1))


def first(population: Sequence[int], k: int) -> list[int]:
    return sorted(population)[:k]


def make_ffn(function: Any, mods: Sequence[Any]) -> Any:
    for one in mods:
        function = partial(one, call_next=function)
    return function


def record(arrays: Any, prefix: str) -> Any:
    names = [name for name in arrays.files if name.startswith(prefix)]
    return ArrayRecord({name[len(prefix) :]: Array(arrays[name]) for name in names})


def signature(name: str) -> list[list[str | None]]:
    cls = getattr(strategy, name, None) or getattr(fedopt, name)
    parameters = inspect.signature(cls.__init__).parameters.values()
    return [[p.name, p.kind.name, None if p.default is p.empty else repr(p.default)] for p in parameters]


def main(cases_file: str, arrays_file: str, out_json: str, out_arrays: str) -> None:
    cases = json.loads(Path(cases_file).read_text())
    arrays = np.load(arrays_file)
    found: dict[str, Any] = {"names": dir(strategy), "signatures": {}, "metrics": {}, "attributes": {}}
    made: dict[str, Any] = {}
    for name in cases["signatures"]:
        found["signatures"][name] = signature(name)
    for case in cases["cases"]:
        key, model = case["key"], record(arrays, f"{case['key']}/initial/")
        cls = getattr(strategy, case["name"])
        arguments = case["arguments"]
        subject = cls(strategy.FedAvg(), **arguments) if case["wraps"] else cls(**arguments)
        found["metrics"][key] = []
        for number, replies in enumerate(case["rounds"], start=1):

            def answer(message: Any, context: Any, number: int = number, replies: Any = replies, key: str = key) -> Any:
                node = message.metadata.dst_node_id - 1
                answered = {"arrays": record(arrays, f"{key}/{number}/{node}/"), "metrics": MetricRecord(replies[node])}
                return Message(RecordDict(answered), reply_to=message)

            messages = subject.configure_train(number, model, ConfigRecord(), Nodes(len(replies)))
            inside = make_ffn(answer, [getattr(mod, name) for name in case["mods"]])
            answers = [inside(message, None) for message in messages]
            aggregated, metrics = subject.aggregate_train(number, answers)
            model = aggregated if aggregated is not None else model
            for name, array in model.items():
                made[f"{key}/{number}/{name}"] = array.numpy()
            found["metrics"][key].append(None if metrics is None else dict(metrics))
        found["attributes"][key] = {name: getattr(subject, name) for name in case["attributes"]}
    Path(out_json).write_text(json.dumps(found))
    np.savez(out_arrays, **made)


TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 0, 1
random.sample = first  # type: ignore[assignment]  # who is asked is a matter of chance there; here the nodes in order
main(*sys.argv[1:])
