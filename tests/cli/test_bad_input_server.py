"""A server that is away, closed, read-only, full or set up to lose data: one line and code 1, and later all is well."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Call, Said
from tests.cli.deployment import Deployment, deployment, write_project

COMMANDS_THAT_READ = (
    ["runs"],
    ["nodes"],
    ["log", "1"],
    ["stop", "1"],
    ["pull", "1"],
    ["doctor"],
    ["dashboard"],
    ["nodes", "add", "x"],
)


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployment(tmp_path_factory.mktemp("federation")) as running:
        yield running


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_project(tmp_path_factory.mktemp("good"), package="good_app")


@pytest.fixture
def submit(federation: Deployment, call: Call, good: Path) -> Iterator[Call]:
    """``fedq run`` of a good app against a server; after the test the run works on the federation's."""

    def run(url: str) -> Said:
        return call("run", good, "--follow", "--timeout", "60s", url=url)

    yield run
    assert "finished" in run(federation.url).succeeds().out, federation.output()


def test_a_server_that_is_not_there(submit: Call) -> None:
    submit("redis://127.0.0.1:1").fails(1, "no Redis server answers at redis://127.0.0.1:1", "superlink --embedded")


@pytest.mark.parametrize("words", COMMANDS_THAT_READ, ids=" ".join)
def test_every_command_says_so_when_the_server_is_not_there(call: Call, words: list[str]) -> None:
    call(*words, url="redis://127.0.0.1:1").fails(1, "no Redis server answers")


def test_an_address_that_is_none(submit: Call) -> None:
    submit("http://example.org").fails(1, "http://example.org", "redis://")


def test_a_server_that_needs_a_password(federation: Deployment, submit: Call) -> None:
    place = federation.url.rpartition("@")[2]
    submit(f"redis://{place}").fails(1, "password", "FEDQ_REDIS_URL")


def test_a_wrong_password_is_told_and_not_shown(federation: Deployment, submit: Call) -> None:
    place = federation.url.rpartition("@")[2]
    said = submit(f"redis://:guessed@{place}").fails(1, "password")
    assert "guessed" not in said.err


@pytest.mark.parametrize(
    "words", [["superlink"], ["supernode", "--name", "z"], ["worker", "--node", "a"], ["dashboard"]], ids=" ".join
)
def test_a_service_with_a_wrong_password_ends_with_the_line(
    federation: Deployment, call: Call, words: list[str]
) -> None:
    place = federation.url.rpartition("@")[2]
    said = call(*words, url=f"redis://:guessed@{place}")
    assert said.code == 1
    assert "password" in said.err.splitlines()[-1]
    assert "guessed" not in said.err


def test_a_server_that_is_read_only(federation: Deployment, submit: Call) -> None:
    with federation.client() as client:
        client.replicaof("127.0.0.1", "1")
        try:
            submit(federation.url).fails(1, "no writes", "primary")
        finally:
            client.replicaof("NO", "ONE")


def test_a_server_that_is_full(federation: Deployment, submit: Call) -> None:
    with federation.client() as client:
        used = client.info("memory")["used_memory"]
    with federation.server.configured(maxmemory=int(used * 1.2)):
        submit(federation.url).fails(1, "maxmemory")


def test_a_server_without_any_memory_left(federation: Deployment, submit: Call) -> None:
    with federation.server.configured(maxmemory=1_000_000):
        submit(federation.url).fails(1, "maxmemory")


def test_a_server_that_evicts(federation: Deployment, submit: Call) -> None:
    with federation.server.configured(maxmemory_policy="allkeys-lru"):
        submit(federation.url).fails(1, "allkeys-lru", "noeviction")


@pytest.mark.parametrize("words", [["superlink"], ["supernode", "--name", "z"]], ids=" ".join)
def test_no_service_starts_on_a_server_that_evicts(federation: Deployment, call: Call, words: list[str]) -> None:
    with federation.server.configured(maxmemory_policy="allkeys-lru"):
        said = call(*words, url=federation.url)
    assert said.code == 1
    assert "noeviction" in said.err.splitlines()[-1]
