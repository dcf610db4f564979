"""``fedq superlink`` as operators meet it."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from fedq.relay import SuperLink
from tests.relay.link import apps
from tests.relay.link.conftest import superlink
from tests.support import RealServer
from tests.support.services import Service
from tests.support.waiting import wait_until


def test_it_waits_for_a_server_and_ends_when_it_is_told_to(tmp_path: Path) -> None:
    with superlink("unix:///tmp/fq-there-is-none.sock", tmp_path) as service:
        service.wait_until(lambda: "waiting for it" in service.output(), "it says that it waits")
        assert service.stop() == 0


def test_it_brings_a_server_of_its_own_and_starts_it_again_should_it_die(tmp_path: Path) -> None:
    folder = tmp_path / "server"
    command = [sys.executable, "-m", "fedq.cli", "superlink", "--runs", "1", "--embedded", str(folder)]
    for number in (1, 2):
        with Service("superlink", command, log=tmp_path / f"{number}.log") as service:
            service.wait_until(lambda: (folder / "url").exists(), "its address is there")
            url = (folder / "url").read_text().strip()
            service.wait_until(lambda: "is ready" in service.output(), "its slot is there")
            if number == 2:
                os.kill(server_pid(url), signal.SIGKILL)
                service.wait_until(lambda url=url: server_pid(url) > 0, "its server is there again")
            with SuperLink.connect(url) as link:
                assert link.submit(apps.printing, apps.client).result(timeout=60).run_id == number
            assert service.stop() == 0, service.output()
    assert not os.path.exists(url.removeprefix("unix://")), "the server has ended with it"


def server_pid(url: str) -> int:
    """The process id of the server there; 0 where none answers."""
    with redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0)) as client:
        try:
            return int(client.info("server")["process_id"])
        except redis.exceptions.ConnectionError:
            return 0


def test_a_server_that_evicts_is_refused(own_server: RealServer, tmp_path: Path) -> None:
    with own_server.configured(maxmemory_policy="allkeys-lru"):
        service = superlink(own_server.url, tmp_path).start()
        wait_until(lambda: not service.running, "it ends by itself", timeout=30)
    assert service.output().strip().endswith("set maxmemory-policy noeviction")
    assert service.stop() == 1
