# mypy: ignore-errors
"""Does what it is told over a socket, as the ServerApp of fedq's benchmark does."""

import json
import os
import socket
import time

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()
GROWS = True
"""Whether all nodes are asked, which add one on average."""


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Connect to the socket that the config names and serve it until it closes."""
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(str(context.run_config["socket"]))
        with line.makefile("rwb") as pipe:
            for request in pipe:
                answer = perform(json.loads(request), grid)
                pipe.write(json.dumps(answer).encode() + b"\n")
                pipe.flush()


def perform(request: dict, grid: Grid) -> dict:
    """Do one thing and tell how long it took."""
    if request["do"] == "hello":
        wanted = request["nodes"]
        while len(nodes := list(grid.get_node_ids())) < wanted:
            time.sleep(0.5)
        return {"pid": os.getpid(), "nodes": nodes}
    return rounds(grid, request["rounds"], request["bytes"], request["nodes"])


def rounds(grid: Grid, count: int, nbytes: int, nodes: list) -> dict:
    """So many rounds, back to back: send to all nodes, receive, average."""
    values = np.random.default_rng(time.time_ns()).random(nbytes // 16 * 4, dtype=np.float32)
    model = ArrayRecord([part.copy() for part in np.split(values, 4)])
    first = last = sample(model)
    strategy = FedAvg()
    seconds = []
    for number in range(1, count + 1):
        began = time.perf_counter()
        record = RecordDict({"arrays": model, "config": ConfigRecord({"changing": 4})})
        messages = [Message(record, node, "train", group_id=str(number)) for node in nodes]
        replies = list(grid.send_and_receive(messages, timeout=600))
        model, _ = strategy.aggregate_train(number, replies)
        seconds.append(time.perf_counter() - began)
        if len(replies) != len(nodes) or model is None:
            raise RuntimeError(f"{len(replies)} of {len(nodes)} nodes replied in round {number}")
        last = sample(model)
    if GROWS and abs(last - first - count) > 1e-3 * count:
        raise RuntimeError(f"after {count} rounds a value has grown by {last - first}")
    return {"seconds": seconds}


def sample(model: ArrayRecord) -> float:
    """One value of the last array."""
    return float(list(model.values())[-1].numpy()[0])
