"""The services as an operator starts them: with a server of their own, more workers, and a policy of trust."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.cli.conftest import Call
from tests.cli.deployment import Deployment, write_project
from tests.support import Service, wait_until
from tests.support.services import SCRIPTS

ONE_NODE = ("--follow", "--config", "nodes=1", "--timeout", "60s")


class OneNode(Deployment):
    """A SuperLink with a single slot; the test adds the node."""

    def start(self) -> None:
        self.server.start()
        self.serve("superlink", "superlink", "--runs", "1", "--grace", "2s")

    def workers(self, queue: str) -> int:
        with self.client() as client:
            return int(client.scard(f"rq:workers:{queue}"))


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[OneNode]:
    running = OneNode(tmp_path)
    try:
        running.start()
        yield running
    finally:
        running.stop()


def test_a_superlink_brings_its_own_server_whose_runs_survive_a_restart(call: Call, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    service = Service(
        "superlink",
        [str(SCRIPTS / "fedq"), "superlink", "--embedded", str(folder), "--runs", "1", "--grace", "2s"],
        log=tmp_path / "superlink.log",
        environment={"HOME": str(tmp_path)},
    )
    project = write_project(tmp_path, server="@app.main()\ndef main(grid, context):\n    pass\n")
    with service:
        service.wait_until(lambda: (folder / "url").is_file(), "the address is written")
        url = (folder / "url").read_text().strip()
        assert "finished" in call("run", project, "--follow", url=url).succeeds().out
        assert service.stop() == 0, service.output()
    call("runs", url=url).fails(1, "no Redis server answers")
    with service:
        service.wait_until(lambda: call("runs", url=url).code == 0, "the server is back")
        assert [run["status"] for run in call("runs", "--json", url=url).json] == ["finished"]
        assert "finished" in call("run", project, "--follow", url=url).succeeds().out
        assert service.stop() == 0, service.output()


def test_a_second_superlink_on_the_same_data_is_refused(call: Call, tmp_path: Path) -> None:
    words = ["superlink", "--embedded", str(tmp_path / "data"), "--runs", "1", "--grace", "2s"]
    service = Service(
        "superlink", [str(SCRIPTS / "fedq"), *words], log=tmp_path / "log", environment={"HOME": str(tmp_path)}
    )
    project = write_project(tmp_path, server="@app.main()\ndef main(grid, context):\n    pass\n")
    with service:
        service.wait_until(lambda: (tmp_path / "data" / "url").is_file(), "the address is written")
        call(*words).fails(1, "another private server works in", "name another directory")
        # The first one has lost nothing by it.
        url = (tmp_path / "data" / "url").read_text().strip()
        assert "finished" in call("run", project, "--follow", url=url).succeeds().out
        assert service.stop() == 0, service.output()


def test_a_run_without_any_node_says_so_and_the_next_one_works_once_there_is_one(
    federation: OneNode, call: Call, tmp_path: Path
) -> None:
    project = write_project(tmp_path)
    said = call("run", project, *ONE_NODE, url=federation.url)
    said.fails(1, "0 of 1 nodes connected after 2 s", "start more SuperNodes")
    assert "waiting for nodes: 0 of 1 nodes" in said.out
    federation.serve_node("a", 0)
    assert "finished" in call("run", project, *ONE_NODE, url=federation.url).succeeds().out


def test_a_worker_adds_slots_to_a_node_and_goes_without_a_trace(federation: OneNode, call: Call) -> None:
    federation.serve_node("a", 0)
    wait_until(lambda: federation.workers("a") == 1, lambda: federation.output(), timeout=30)
    worker = federation.serve("worker", "worker", "--node", "a", "--slots", "2", "--grace", "2s")
    wait_until(lambda: federation.workers("a") == 3, lambda: federation.output(), timeout=30)
    assert worker.stop() == 0, worker.output()
    wait_until(lambda: federation.workers("a") == 1, "its workers have signed off")
    assert federation.online() == ["a"]


def test_a_node_runs_only_apps_that_its_operator_trusts(federation: OneNode, call: Call, tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    pem = tmp_path / "key.pem"
    pem.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    words = ["supernode", "--name", "a", "--grace", "2s", "--trust-key", base64.b64encode(public).decode()]
    service = federation.serve("a", *words)
    wait_until(lambda: federation.online() == ["a"], lambda: federation.output(), timeout=30)
    assert "trusts apps signed with one of 1 keys" in service.output()

    project = write_project(tmp_path)
    call("run", project, *ONE_NODE, url=federation.url).fails(1, "no signature")
    call("run", project, *ONE_NODE, "--sign-key", pem, url=federation.url).succeeds()

    other = tmp_path / "other.pem"
    other.write_bytes(
        Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    call("run", project, *ONE_NODE, "--sign-key", other, url=federation.url).fails(1, "not signed with a key")


def test_what_clientapps_print_stays_where_the_operator_says_so(
    federation: OneNode, call: Call, tmp_path: Path
) -> None:
    federation.serve("a", "supernode", "--name", "a", "--grace", "2s", "--no-ship-logs")
    wait_until(lambda: federation.online() == ["a"], lambda: federation.output(), timeout=30)
    client = """
    @app.train()
    def train(message, context):
        print("a secret")
        arrays = message.content["arrays"]
        return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})}), reply_to=message)
    """
    project = write_project(tmp_path, client=client)
    number = call("run", project, *ONE_NODE, "--json", url=federation.url).succeeds().json["run_id"]
    assert "secret" not in call("log", number, url=federation.url).succeeds().out


def test_what_the_owner_imposes_is_in_force_and_shown(federation: OneNode, call: Call, tmp_path: Path) -> None:
    rules = tmp_path / "rules"
    rules.mkdir()
    (rules / "rules.py").write_text(
        "from fedq.apps.errors import ReplyRefused\n\n"
        "def at_least(examples):\n"
        "    def mod(message, context, call_next):\n"
        "        call_next(message, context)\n"
        "        raise ReplyRefused(f'fewer than {examples} examples')\n"
        "    return mod\n"
    )
    federation.serve(
        *("a", "supernode", "--name", "a", "--grace", "2s"),
        PYTHONPATH=str(rules),
        FEDQ_SUPERNODE_MOD="fedq.apps.mod:SizeLimitMod(10_000, None)  rules:at_least(20)",
    )
    wait_until(lambda: federation.online() == ["a"], lambda: federation.output(), timeout=30)
    assert call("nodes", "--json", url=federation.url).json[0]["mods"] == [
        "fedq.apps.mod:SizeLimitMod(10000, None)",
        "rules:at_least(20)",
    ]
    project = write_project(tmp_path)
    said = call("run", project, *ONE_NODE, url=federation.url)
    assert said.code != 0
    assert "node a does not let this reply out: fewer than 20 examples" in said.out + said.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--mod", "no_such_rules:mod"), "no module 'no_such_rules'"),
        (("--mod", "rules"), "names no mod"),
        (("--trust-key", "short"), "Ed25519"),
        (("--trust-digest", "abc"), "64 hex digits"),
        (("--time-limit", "0"), "time limit"),
    ],
)
def test_a_setting_that_makes_no_sense_is_told_before_anything_starts(
    call: Call, words: tuple[str, str], says: str
) -> None:
    call("supernode", "--name", "a", *words).fails(1, says)
