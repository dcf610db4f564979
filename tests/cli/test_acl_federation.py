"""A SuperNode that connects as the user of whom ``fedq nodes acl`` prints the rule does its work, within that rule."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest

from tests.cli.conftest import Call
from tests.cli.deployment import Deployment, write_project
from tests.support import wait_until

CLIENT = """
@app.train()
def train(message, context):
    print("hello")
    rounds = context.state.metric_records.get("rounds", MetricRecord({"count": 0}))
    context.state["rounds"] = MetricRecord({"count": rounds["count"] + 1})
    context.state["large"] = ArrayRecord([np.full(5000, float(rounds["count"]))])
    arrays = message.content["arrays"].to_numpy_ndarrays()
    metrics = MetricRecord({"loss": float(rounds["count"]), "num-examples": 1})
    return Message(RecordDict({"arrays": ArrayRecord([arrays[0] + 1]), "metrics": metrics}), reply_to=message)
"""

LARGE = """
@app.main()
def main(grid, context):
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1, node_timeout=20.0)
    strategy.start(grid, ArrayRecord([np.zeros(20_000)]), num_rounds=3, timeout=20.0)
"""


class Confined(Deployment):
    """A SuperLink as the default user, and one node as a user of its own."""

    def start(self) -> None:
        self.server.start()
        self.serve("superlink", "superlink", "--runs", "1", "--grace", "2s")

    def url_of(self, user: str, password: str) -> str:
        parts = urlsplit(self.url)
        return urlunsplit(parts._replace(netloc=f"{user}:{password}@{parts.netloc.rpartition('@')[2]}"))

    def denied(self) -> list[dict[str, Any]]:
        with self.client() as client:
            return list(client.acl_log())


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Confined]:
    running = Confined(tmp_path)
    try:
        running.start()
        yield running
    finally:
        running.stop()


@pytest.mark.parametrize("isolation", ["fork", "run", "inline"])
def test_a_confined_node_serves_runs_and_is_denied_nothing(
    federation: Confined, call: Call, tmp_path: Path, isolation: str
) -> None:
    url = federation.url
    call("nodes", "add", "clinic-a", url=url).succeeds()
    password = call("nodes", "acl", "clinic-a", "--apply", "--json", url=url).succeeds().json["password"]
    with federation.client() as client:
        client.acl_log_reset()
    words = ["supernode", "--name", "clinic-a", "--isolation", isolation, "--grace", "2s"]
    service = federation.serve("clinic-a", *words, "--redis-url", federation.url_of("clinic-a", password))
    wait_until(lambda: federation.online() == ["clinic-a"], lambda: federation.output(), timeout=30)

    project = write_project(tmp_path, client=CLIENT, server=LARGE)
    said = call("run", project, "--follow", "--json", "--timeout", "60s", url=url).succeeds().json
    assert [ended["metrics"]["loss"] for ended in said["rounds"]] == [0.0, 1.0, 2.0]
    assert "clinic-a info: hello" in call("log", said["run_id"], url=url).out

    # The server forgets the steps, which the node may not load.
    with federation.client() as client:
        client.script_flush()
    # A run that is stopped reaches the node as well.
    slow = CLIENT.replace('print("hello")', "import time; time.sleep(60)")
    project = write_project(tmp_path, client=slow, server=LARGE, package="slow_app")
    number = call("run", project, "--json", url=url).succeeds().json["run_id"]
    wait_until(lambda: federation.server.keys("fedq:{0}:node:clinic-a:claims"), "its message is being worked on")
    call("stop", number, url=url).succeeds()
    wait_until(
        lambda: not federation.server.keys(f"fedq:{{0}}:node:clinic-a:order:{number}"), "the stopped run is gone"
    )

    # Tried and done without: what redis-py says of itself, whether fsync is on, loading the scripts that a SuperLink
    # has not loaded yet, and registering a node that an operator has added already.
    harmless = {"client|setinfo", "config|get", "script|load", "fedq:{0}:nodes"}
    denied = [entry for entry in federation.denied() if entry["object"] not in harmless]
    assert not denied, denied
    assert service.stop() == 0, service.output()
    assert federation.online() == []
