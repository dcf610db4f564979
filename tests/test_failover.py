"""A replica takes over while a run is under way: a prefix of what was written survives, and the run goes on from it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from fedq.relay import cleanup
from fedq.relay.superlink import SuperLink
from tests.chaos import app
from tests.chaos.driver import Plan, Report, judge, undisturbed
from tests.chaos.site import Site
from tests.support import RealServer, wait_until

PLAN = Plan(seed=0, rounds=20, nodes=2, delay=0.05)


@pytest.fixture
def site() -> Iterator[Site]:
    with tempfile.TemporaryDirectory(prefix="fedq-chaos-") as folder:
        with Site(Path(folder), PLAN.nodes, "fork", listen="loopback") as running:
            yield running
            running.stop()


@pytest.mark.chaos
def test_a_run_goes_on_at_a_promoted_replica_and_ends_with_the_same_bits(site: Site) -> None:
    address = urlsplit(site.server.url)
    password, port = str(address.password), int(address.port or 0)
    settings = {"replicaof": f"127.0.0.1 {port}", "masterauth": password}
    with RealServer(site.folder / "replica", listen="loopback", settings=settings) as replica:
        with replica.client() as second, SuperLink.connect(site.server.url) as link:

            def behind() -> dict[str, Any]:
                return dict(second.info("replication"))

            wait_until(lambda: behind().get("master_link_status") == "up", "the replica has caught up")
            run = link.submit(app.server_app, app.client_app, config=PLAN.config, max_attempts=20, max_deliveries=20)
            wait_until(lambda: (site.checkpoint(run.run_id) or 0) >= 5, "some rounds are done", timeout=60)

            site.server.kill()
            second.replicaof("NO", "ONE")
            # The services know one address; whoever fails over moves it, as a sentinel or a virtual address does.
            second.config_set("requirepass", password)
            second.config_set("port", port)

            wait_until(lambda: site.status(run.run_id) == "finished", site.said, timeout=120)
            report = Report(PLAN)
            judge(report, run.result(timeout=30), undisturbed(PLAN))
            assert report.wrong == []
            assert cleanup.remove_run(link.relay, run.run_id)
            # Services are told to stop while a server is there to say good-bye to.
            assert site.stop() == []
