"""The apps that a benchmark trains: each ClientApp adds one to the arrays, the ServerApp averages.

The ServerApp does what it is told over a socket, so that one run serves all repetitions, and what it is compared with
is measured in between while it waits. It answers with its own times: submitting and following a run are not part of a
round.

Both apps travel to the federation by themselves; they import nothing of this package.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import count, pairwise
from typing import Any

import numpy as np

from fedq.apps import (
    ArrayRecord,
    ClientApp,
    ConfigRecord,
    Context,
    Grid,
    Message,
    MetricRecord,
    RecordDict,
    ServerApp,
)
from fedq.apps.strategy import FedAvg
from fedq.apps.strategy.averaging import ArrayAverage

client_app = ClientApp()
server_app = ServerApp()


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Add one to the last ``changing`` arrays (all by default); count in the Context how often this node did it.

    Nodes add a little more or less than one, and one on average: were their replies alike, their average would be
    known by its digest to whoever had sent one, and would not travel.
    """
    model = message.content.array_records["arrays"]
    settings = message.content.config_records.get("config", ConfigRecord())
    changing = settings.get("changing", len(model))
    assert isinstance(changing, int)
    names = list(model)
    place_of_node, nodes = (int(context.node_config.get(key, 0)) for key in ("partition-id", "num-partitions"))
    step = np.float32(1 + (place_of_node - (nodes - 1) / 2) / 1024)
    arrays = ArrayRecord(
        {
            # Neither what came nor what goes is copied: nobody else has the sum.
            name: (
                array
                if place < len(names) - changing
                else type(array).from_numpy_ndarray(array.numpy(copy=False) + step, copy=False)
            )
            for place, (name, array) in enumerate(model.items())
        }
    )
    linger = settings.get("linger", 0.0)
    assert isinstance(linger, float)
    if linger:
        time.sleep(linger)  # until whoever looks for this process has seen it
    counter = context.state.metric_records.get("counter", MetricRecord({"calls": 0}))
    counter["calls"] = int(counter["calls"]) + 1  # type: ignore[arg-type]
    context.state["counter"] = counter
    metrics = MetricRecord({"num-examples": 1, "pid": os.getpid()})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


def make_model(nbytes: int, arrays: int = 4, *, seeds: Iterator[int] = count(1)) -> ArrayRecord:  # noqa: B008
    """float32 arrays of ``nbytes`` together, or a little less.

    Their values do not compress, and are others in each call: nobody has them yet.
    """
    values = np.random.default_rng(next(seeds)).random(nbytes // 4 // arrays * arrays, dtype=np.float32)
    return ArrayRecord([part.copy() for part in np.split(values, arrays)])


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Connect to the socket that the config names and serve it until it closes."""
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(str(context.run_config["socket"]))
        with line.makefile("rwb") as pipe:
            for request in pipe:
                answer = perform(json.loads(request), grid, context)
                pipe.write(json.dumps(answer).encode() + b"\n")
                pipe.flush()


def perform(request: dict[str, Any], grid: Grid, context: Context) -> dict[str, Any]:
    """Do one thing and tell how long it took."""
    actions: dict[str, Callable[..., dict[str, Any]]] = {
        "hello": hello,
        "rounds": rounds,
        "messages": messages,
        "strategy": strategy,
        "nodes": node_ids,
    }
    return actions[request.pop("do")](grid, context, **request)


def hello(grid: Grid, context: Context) -> dict[str, Any]:
    """Who this is."""
    return {"pid": os.getpid(), "nodes": grid.get_node_ids()}


def rounds(
    grid: Grid,
    context: Context,
    *,
    rounds: int,
    bytes: int,  # noqa: A002 - what it is called in the request
    nodes: list[str],
    arrays: int = 4,
    changing: int | None = None,
    linger: float = 0.0,
) -> dict[str, Any]:
    """So many rounds, back to back: send to all nodes, fold the replies as they arrive, write a checkpoint.

    The first round starts from a new model, the later ones from the average of the one before. Each ClientApp sleeps
    for ``linger`` seconds.
    """
    model = make_model(bytes, arrays)
    config = ConfigRecord({"changing": arrays if changing is None else changing})
    if linger:
        config["linger"] = linger
    began = time.perf_counter()
    seconds: list[float] = []
    pids: set[int] = set()
    first = last = sample(model)
    for number in range(rounds):
        record = RecordDict({"arrays": model, "config": config})
        replies = grid.stream(
            [Message(record, node, "train", group_id=str(number + 1)) for node in nodes], timeout=600.0
        )
        average = ArrayAverage(model)
        del model, record  # the average is all that is needed from here on
        pids |= fold(replies, average)
        if average.count != len(nodes):
            raise RuntimeError(f"{average.count} of {len(nodes)} nodes replied in round {number + 1}")
        result = average.result()
        assert result is not None
        model = result
        del average, result
        context.state["arrays"] = model
        context.save(folded=replies.message_ids)
        now = time.perf_counter()
        seconds.append(now - began)
        began = now
        last = sample(model)
    if abs(last - first - rounds) > 1e-3 * rounds:
        raise RuntimeError(f"after {rounds} rounds a value has grown by {last - first}")
    return {"seconds": seconds, "pids": sorted(pids), "bytes": model.count_bytes()}


def sample(model: ArrayRecord) -> float:
    """One value of the last array, to see that what was added has come back."""
    return float(list(model.values())[-1].numpy()[0])


def fold(replies: Iterable[Message], average: ArrayAverage) -> set[int]:
    """Take each reply into the average; the processes that they come from."""
    pids: set[int] = set()
    for reply in replies:
        if reply.has_error():
            raise RuntimeError(f"{reply.metadata.src_node_id}: {reply.error.reason}")
        average.add(reply.content.array_records["arrays"], 1.0)
        pids.add(int(reply.content.metric_records["metrics"]["pid"]))  # type: ignore[arg-type]
        del reply  # as the strategies do: there is room for one, and the next is coming
    return pids


def messages(
    grid: Grid,
    context: Context,
    *,
    number: int,
    bytes: int,  # noqa: A002
    nodes: list[str],
) -> dict[str, Any]:
    """So many messages, sent at once to the nodes in turn; from the first push to the last reply."""
    record = RecordDict({"arrays": make_model(bytes), "config": ConfigRecord({"changing": 4})})
    began = time.perf_counter()
    replies = grid.stream([Message(record, nodes[i % len(nodes)], "train") for i in range(number)], timeout=600.0)
    got = sum(not reply.has_error() for reply in replies)
    seconds = time.perf_counter() - began
    if got != number:
        raise RuntimeError(f"{got} of {number} messages were answered well")
    context.save(folded=replies.message_ids)
    return {"seconds": seconds}


def strategy(
    grid: Grid,
    context: Context,
    *,
    rounds: int,
    bytes: int,  # noqa: A002
    budget: int | None = None,
) -> dict[str, Any]:
    """So many rounds of FedAvg with everything that belongs to them: sampling, events, metrics, checkpoints. Replies
    keep within ``budget`` bytes of the server's memory, if there is one.
    """
    marks: list[float] = []

    def mark(_round: int, _arrays: ArrayRecord) -> None:
        marks.append(time.perf_counter())

    FedAvg(fraction_evaluate=0.0, reply_budget=budget).start(grid, make_model(bytes), rounds, evaluate_fn=mark)
    return {"seconds": [after - before for before, after in pairwise(marks)]}


def node_ids(grid: Grid, context: Context, *, repetitions: int, sample: int) -> dict[str, Any]:
    """How long it takes to learn the nodes' ids, and to draw some of them as FedAvg does."""
    listing, sampling = [], []
    found: list[str] = []
    for _ in range(repetitions):
        began = time.perf_counter()
        found = grid.get_node_ids()
        listing.append(time.perf_counter() - began)
        context.save()
        drawn = FedAvg(fraction_train=sample / len(found), min_train_nodes=sample, min_available_nodes=sample)
        began = time.perf_counter()
        sent = list(drawn.configure_train(1, make_model(1000), ConfigRecord(), grid))
        sampling.append(time.perf_counter() - began)
        if len(sent) != sample:
            raise RuntimeError(f"{len(sent)} nodes were sampled instead of {sample}")
        context.save()
    return {"listing": listing, "sampling": sampling, "nodes": len(found)}
