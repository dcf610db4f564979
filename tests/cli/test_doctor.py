"""``fedq doctor`` finds what is wrong and says how to mend it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import redis as redis_py

from fedq.cli import doctor
from fedq.cli.orphans import take_census
from fedq.relay.cleanup import remove_run
from fedq.relay.connection import Relay, ServerInfo
from fedq.relay.nodes import NodeInfo, beat, register
from fedq.relay.runs import RunSpec, stop_run, submit
from tests.cli.conftest import Call, Said
from tests.support import RealServer

HEALTHY = ServerInfo("valkey", "8.1.8", "id", "master", 0, "noeviction", True, "always")


def finding(said: Said, subject: str) -> dict[str, Any]:
    found = [item for item in said.json["findings"] if item["subject"] == subject]
    assert len(found) == 1, said.json
    item: dict[str, Any] = found[0]
    return item


def test_a_healthy_server_has_no_serious_finding(served: Call) -> None:
    said = served("doctor", "--json").succeeds()
    assert said.json["worst"] in ("ok", "warning")
    for subject in ("server", "append-only file", "eviction policy", "clock", "key prefix", "orphaned keys"):
        assert finding(said, subject)["level"] == "ok", said.json
    assert all(item["remedy"] for item in said.json["findings"] if item["level"] != "ok")


def test_every_finding_is_a_line_with_its_remedy_below(served: Call) -> None:
    out = served("doctor").succeeds().out
    assert "ok       eviction policy: noeviction\n" in out
    assert "warning  nodes: none is registered\n         -> start one with fedq supernode --name NAME\n" in out


@pytest.mark.parametrize(
    ("setting", "value", "subject", "remedy"),
    [
        ("appendonly", "no", "append-only file", "CONFIG SET appendonly yes"),
        ("maxmemory-policy", "allkeys-lru", "eviction policy", "CONFIG SET maxmemory-policy noeviction"),
        ("maxmemory", "1500000", "memory", "raise maxmemory"),
    ],
)
def test_what_loses_messages_is_serious(
    call: Call, own_server: RealServer, setting: str, value: str, subject: str, remedy: str
) -> None:
    with own_server.client() as client:
        if setting == "maxmemory":
            value = str(int(client.info("memory")["used_memory"] * 1.2))
        client.config_set(setting, value)
    said = call("doctor", "--json", url=own_server.url)
    assert finding(said, subject)["level"] == "serious"
    assert remedy in finding(said, subject)["remedy"]
    said.fails(1, subject, remedy)


def test_a_replica_is_serious(call: Call, own_server: RealServer) -> None:
    with own_server.client() as client:
        client.replicaof("127.0.0.1", "1")
    try:
        call("doctor", url=own_server.url).fails(1, "replica", "primary")
    finally:
        with own_server.client() as client:
            client.replicaof("NO", "ONE")


def test_no_server_is_the_one_finding(call: Call) -> None:
    said = call("doctor", "--json", url="redis://127.0.0.1:1")
    said.fails(1, "no Redis server answers", "superlink --embedded")
    assert [item["subject"] for item in said.json["findings"]] == ["server"]


@pytest.mark.parametrize(
    ("kind", "version", "level"),
    [
        ("redis", "6.2.14", "serious"),
        ("redis", "7.0.15", "ok"),
        ("redis", "7.1.9", "ok"),
        ("redis", "7.2.0", "warning"),
        ("redis", "8.2.3", "warning"),
        ("redis", "8.6.2", "warning"),
        ("redis", "8.6.3", "ok"),
        ("redis", "9.0.0", "ok"),
        ("valkey", "7.2.5", "ok"),
        ("valkey", "8.1.8", "ok"),
    ],
)
def test_versions_with_a_known_fault_are_named(kind: str, version: str, level: str) -> None:
    server = ServerInfo(kind, version, "id", "master", 0, "noeviction", True, "always")
    (found,) = doctor.check_server(server)
    assert found.level == level
    assert ("CVE-2026-23479" in found.text) == (level == "warning")
    assert bool(found.remedy) == (level != "ok")


def test_appendfsync_no_is_a_warning() -> None:
    (found,) = doctor.check_durability(ServerInfo("redis", "7.0.15", "id", "master", 0, "noeviction", True, "no"))
    assert found.level == "warning"
    (found,) = doctor.check_durability(HEALTHY)
    assert found.level == "ok"


@pytest.mark.parametrize(
    ("ahead", "level"), [(0.0, "ok"), (-1.0, "ok"), (5.0, "warning"), (-5.0, "warning"), (100.0, "serious")]
)
def test_clocks_that_disagree_are_told(relay: Relay, monkeypatch: pytest.MonkeyPatch, ahead: float, level: str) -> None:
    now = relay.now
    monkeypatch.setattr(relay, "now", lambda: now() + ahead)
    found = doctor.check_clock(relay)
    assert found.level == level
    assert ("ahead" if ahead > 0 else "behind") in found.text or level == "ok"


def test_a_server_in_the_network_without_password_or_encryption_is_a_warning() -> None:
    with Relay("redis://relay.example.org:6379") as relay:
        texts = [found.text for found in doctor.check_access(relay)]
    assert texts == [
        "the server at relay.example.org asks for no password",
        "the connection to relay.example.org is not encrypted",
    ]
    for url in ("rediss://u:p@relay.example.org", "redis://127.0.0.1:6379", "unix:///run/redis.sock"):
        with Relay(url) as relay:
            assert list(doctor.check_access(relay)) == []


def test_keys_of_other_programs_and_other_homes_are_told(served: Call, redis: redis_py.Redis) -> None:
    redis.set("session:1", "x")
    redis.set("fedq:{eu}:nodes", "x")
    said = served("doctor", "--json").succeeds()
    texts = [item["text"] for item in said.json["findings"] if item["subject"] == "key prefix"]
    assert any("eu" in text for text in texts)
    assert any("1 keys of other programs" in text for text in texts)
    redis.delete("session:1", "fedq:{eu}:nodes")


@pytest.mark.leaves_keys
def test_offline_nodes_are_named(served: Call, relay: Relay) -> None:
    for name in ("a", "b"):
        register(relay, name, NodeInfo())
    beat(relay, "a")
    found = finding(served("doctor", "--json").succeeds(), "nodes")
    assert found["level"] == "warning"
    assert found["text"] == "1 of 2 online; offline: b"
    beat(relay, "b")
    assert finding(served("doctor", "--json").succeeds(), "nodes")["level"] == "ok"


@pytest.mark.leaves_keys
def test_runs_that_no_superlink_takes_are_serious(served: Call, relay: Relay) -> None:
    submit(relay, RunSpec(client_token="t"))
    said = served("doctor", "--json")
    said.fails(1, "superlinks", "fedq superlink")


@pytest.mark.leaves_keys
def test_orphaned_keys_are_found_and_removed_and_nothing_else_is(
    served: Call, relay: Relay, redis: redis_py.Redis
) -> None:
    keys = relay.keys
    run = submit(relay, RunSpec(client_token="t"))
    stop_run(relay, run)
    gone = submit(relay, RunSpec(client_token="u"))
    stop_run(relay, gone)
    remove_run(relay, gone)
    register(relay, "a", NodeInfo())
    before = set(redis.keys("fedq:*"))
    digest = "0" * 64
    orphans = {
        keys.journal(gone): "run",
        keys.order("a", gone): "run",
        keys.replies("a", 999): "run",
        keys.claims("never"): "not registered",
        keys.out("a", "f" * 32): "answer",
        keys.obj(digest): "owner",
        keys.node_obj("a", digest): "owner",
    }
    for key in orphans:
        redis.hset(key, "run", str(gone)) if ":out:" in key else redis.set(key, "x")
    redis.set(keys.obj("1" * 64), "x", ex=600)  # an upload under way

    census = take_census(relay)
    assert {orphan.key for orphan in census.orphans} == set(orphans)
    for orphan in census.orphans:
        assert orphans[orphan.key] in orphan.why
    found = finding(served("doctor", "--json").succeeds(), "orphaned keys")
    assert found["level"] == "warning"
    assert "--remove-orphans" in found["remedy"]

    assert served("doctor", "--remove-orphans").succeeds().out.count("7 of 7 removed") == 1
    assert set(redis.keys("fedq:*")) == before | {keys.obj("1" * 64).encode()}


def test_the_doctor_writes_nothing(served: Call, redis: redis_py.Redis) -> None:
    served("doctor").succeeds()
    assert redis.keys("*") == []


def test_a_user_without_rights_learns_what_could_not_be_examined(
    call: Call, own_server: RealServer, tmp_path: Path
) -> None:
    with own_server.client() as client:
        rights = ["~fedq:*", "+ping", "+info", "+time", "+hello", "+client", "+smembers"]
        client.execute_command("ACL", "SETUSER", "poor", "on", ">word", *rights)
    url = own_server.url.replace("unix://", "unix://poor:word@")
    said = call("doctor", "--json", url=url)
    assert "could not be" in "".join(item["text"] for item in said.json["findings"])
    assert "unexpected" not in said.err
