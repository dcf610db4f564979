"""What docker-compose.yml and the systemd units start, starts: each command for real, as a process."""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import shutil
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py
import yaml

from fedq.relay.serverprogram import find_server
from tests.support import Service, free_port, wait_until
from tests.support.services import SCRIPTS

ROOT = Path(__file__).parents[1]
UNITS = sorted((ROOT / "scripts" / "systemd").glob("*.service"))
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = ("superlink", "site-a", "site-b", "dashboard")


# -- what the file says ------------------------------------------------------------------------------------------------


def test_the_server_appends_always_evicts_nothing_and_is_watched() -> None:
    valkey = SERVICES["valkey"]
    words = valkey["command"]
    asked = dict(zip(words[1::2], words[2::2], strict=True))
    assert asked["--appendonly"] == "yes"
    assert asked["--appendfsync"] == "always"
    assert asked["--maxmemory-policy"] == "noeviction"
    assert "ping" in valkey["healthcheck"]["test"][1]
    assert any(volume.endswith(":" + asked["--dir"]) for volume in valkey["volumes"])


def test_no_port_is_reachable_from_another_machine() -> None:
    for name, service in SERVICES.items():
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), f"{name} publishes {port}"


@pytest.mark.parametrize("name", OURS)
def test_each_service_waits_for_a_healthy_server_and_runs_without_privileges(name: str) -> None:
    service = SERVICES[name]
    assert service["depends_on"] == {"valkey": {"condition": "service_healthy"}}
    assert service["cap_drop"] == ["ALL"]
    assert service["read_only"] is True
    assert service["init"] is True
    assert service["build"] == "."


def test_every_volume_that_is_mounted_is_declared() -> None:
    mounted = {volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", ())}
    assert mounted == set(COMPOSE["volumes"])


def test_the_image_runs_as_a_user_of_its_own_and_holds_what_is_copied() -> None:
    lines = [line.split() for line in (ROOT / "Dockerfile").read_text().splitlines() if line.strip()]
    users = [words[1] for words in lines if words[0] == "USER"]
    assert users
    assert users[-1] not in ("root", "0")
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for words in lines:
        if words[0] == "COPY" and not words[1].startswith("--from"):
            for source in words[1:-1]:
                assert (ROOT / source).exists(), source
                assert source in let_in, f"{source} is kept out by .dockerignore"


# -- what it starts ----------------------------------------------------------------------------------------------------


@dataclass
class Federation:
    """The compose file's services as processes of this machine."""

    url: str
    dashboard: str
    services: dict[str, Service] = field(default_factory=dict)

    def fedq(self, *words: str) -> subprocess.CompletedProcess[str]:
        service = self.services["superlink"]
        return subprocess.run(
            ["fedq", *words], env=service.environment, capture_output=True, text=True, check=False, timeout=60
        )

    def nodes(self) -> dict[str, dict[str, Any]]:
        done = self.fedq("nodes", "--json")
        assert done.returncode == 0, done.stderr
        listed = json.loads(done.stdout)
        return {node["name"]: node for node in (listed["nodes"] if isinstance(listed, dict) else listed)}

    def is_online(self, name: str) -> bool:
        return bool(self.nodes().get(name, {}).get("online"))


def interpolated(text: str, values: dict[str, str]) -> str:
    """``text`` with ``${NAME:-default}`` replaced, as compose does."""
    return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda match: values.get(match[1]) or match[2], text)


def healthcheck(folder: Path, port: str, environment: dict[str, str]) -> Callable[[], bool]:
    """The file's healthcheck, with the client that belongs to the server of this machine in the place of valkey-cli."""
    server = find_server()
    client = next(path for name in ("valkey-cli", "redis-cli") if (path := server.path.with_name(name)).exists())
    (folder / "bin").mkdir()
    (folder / "bin" / "valkey-cli").symlink_to(client)
    form, line = SERVICES["valkey"]["healthcheck"]["test"]
    assert form == "CMD-SHELL"
    places = f"{folder / 'bin'}:{os.environ['PATH']}"

    def healthy() -> bool:
        words = ["sh", "-c", line.replace("6379", port)]
        return (
            subprocess.run(words, env=environment | {"PATH": places}, capture_output=True, check=False).returncode == 0
        )

    return healthy


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    """Every service of the file, started in order with its own command; ports and paths are this test's."""
    values = {"FEDQ_REDIS_PASSWORD": "a pass/word"} | {"FEDQ_REDIS_MAXMEMORY": "256mb"}
    # A password in a URL is written with its special characters escaped: that is up to who sets it.
    quoted = values | {"FEDQ_REDIS_PASSWORD": "a%20pass%2Fword"}
    port, web = str(free_port()), str(free_port())
    (tmp_path / "data").mkdir()

    def words_of(name: str) -> list[str]:
        here = {"/data": str(tmp_path / "data"), "6379": port, "9181": web, "0.0.0.0": "127.0.0.1"}
        words = [interpolated(word, values) for word in SERVICES[name]["command"]]
        return [here.get(word, word) for word in words]

    def environment_of(name: str) -> dict[str, str]:
        found = {key: interpolated(value, quoted) for key, value in SERVICES[name].get("environment", {}).items()}
        return {key: value.replace("@valkey:6379", f"@127.0.0.1:{port}") for key, value in found.items()}

    with ExitStack() as stack:
        program, *words = words_of("valkey")
        assert program == "valkey-server"
        valkey = Service("valkey", [str(find_server().path), *words], log=tmp_path / "valkey.log")
        stack.callback(valkey.kill)
        valkey.start()
        found = Federation(environment_of("superlink")["FEDQ_REDIS_URL"], f"http://127.0.0.1:{web}", {"valkey": valkey})
        check = healthcheck(tmp_path, port, environment_of("valkey") | {"REDISCLI_AUTH": values["FEDQ_REDIS_PASSWORD"]})
        wait_until(check, "the server is healthy, as compose sees it")
        for name in OURS:
            # A home of its own for each, as its volume is.
            home = tmp_path / name
            home.mkdir()
            environment = environment_of(name) | {"HOME": str(home)}
            service = Service(name, words_of(name), log=home / "log", environment=environment)
            stack.callback(service.kill)
            found.services[name] = service.start()
        yield found


def test_each_service_starts_finds_the_server_and_ends_cleanly_when_told_to(federation: Federation) -> None:
    for name in ("site-a", "site-b"):
        federation.services[name].wait_until(partial(federation.is_online, name), f"{name} is online")
    nodes = federation.nodes()
    assert nodes["site-a"]["labels"] == {"site": "eu"}
    assert nodes["site-b"]["labels"] == {"site": "us"}
    assert {node["slots"] for node in nodes.values()} == {2}

    with redis_py.Redis.from_url(federation.url) as client:
        superlink = federation.services["superlink"]
        superlink.wait_until(
            lambda: client.scard("rq:workers:_serverapps") == 4, "the SuperLink offers the four slots of --runs 4"
        )
        for name in ("site-a", "site-b"):
            wait_until(partial(serves, client, name, 2), f"{name} offers the two slots of --slots 2")

    def page() -> str:
        with urllib.request.urlopen(f"{federation.dashboard}/0/data/queues.json", timeout=10) as answer:
            return str(answer.read().decode())

    dashboard = federation.services["dashboard"]
    dashboard.wait_until(lambda: port_answers(federation.dashboard), "the dashboard answers")
    assert json.loads(page())["queues"] is not None

    for name in ("site-a", "site-b", "superlink"):
        assert federation.services[name].stop() == 0, federation.services[name].output()
    wait_until(
        lambda: not any(service.running for name, service in federation.services.items() if name.startswith("s")),
        "all have ended",
    )


@pytest.mark.parametrize(("name", "queue"), [("superlink", "_serverapps"), ("site-a", "site-a")])
def test_logs_are_one_json_object_a_line(federation: Federation, name: str, queue: str) -> None:
    service = federation.services[name]
    with redis_py.Redis.from_url(federation.url) as client:
        service.wait_until(lambda: client.scard(f"rq:workers:{queue}"), f"{name} serves")
    assert service.stop() == 0, service.output()
    assert service.output()
    for line in service.output().splitlines():
        assert isinstance(json.loads(line), dict), line


def serves(client: redis_py.Redis, queue: str, workers: int) -> bool:
    return bool(client.scard(f"rq:workers:{queue}") == workers)


def port_answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


# -- systemd -----------------------------------------------------------------------------------------------------------


def unit(path: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None, comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(path)
    return parser


def test_there_is_a_unit_for_each_service() -> None:
    assert [path.name for path in UNITS] == [
        "fedq-superlink.service",
        "fedq-supernode@.service",
        "fedq-worker@.service",
    ]


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_a_unit_always_restarts_its_service_and_confines_it(path: Path) -> None:
    service = unit(path)["Service"]
    assert service["Restart"] == "always"
    assert service["KillMode"] == "mixed"
    assert service["NoNewPrivileges"] == "yes"
    assert service["ProtectSystem"] == "strict"
    assert service["DynamicUser"] == "yes"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_systemd_finds_nothing_wrong_with_a_unit(path: Path, tmp_path: Path) -> None:
    # systemd looks whether the program exists, so that the copy names one that does.
    copy = tmp_path / path.name.replace("@.", "@clinic-a.")
    copy.write_text(path.read_text().replace("/opt/fedq/bin/fedq", str(SCRIPTS / "fedq")))
    done = subprocess.run(["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, check=False)
    complaints = [line for line in done.stderr.splitlines() if path.stem.split("@")[0] in line]
    assert not complaints, "\n".join(complaints)


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_the_command_of_a_unit_serves_until_it_is_told_to_stop(path: Path, own_server: Any, tmp_path: Path) -> None:
    line = unit(path)["Service"]["ExecStart"].replace("%i", "clinic-a").replace("$OPTIONS", "--slots 1")
    words = shlex.split(line.replace("superlink --log-format json --slots 1", "superlink --log-format json --runs 1"))
    assert words[0] == "/opt/fedq/bin/fedq"
    service = Service(
        path.stem,
        ["fedq", *words[1:]],
        log=tmp_path / "log",
        environment={"FEDQ_REDIS_URL": own_server.url, "HOME": str(tmp_path)},
    )
    queue = "_serverapps" if "superlink" in path.name else "clinic-a"
    with service, own_server.client() as client:
        service.wait_until(lambda: client.scard(f"rq:workers:{queue}") == 1, f"a worker serves {queue}")
        assert service.stop() == 0, service.output()
