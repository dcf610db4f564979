"""A run ends with the same bits though its server is silent for a minute, or breaks off in the middle of replies."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from fedq.relay import cleanup
from fedq.relay.superlink import SuperLink
from tests.chaos import app, audit
from tests.chaos.driver import Plan, Report, judge, judge_file, undisturbed
from tests.chaos.site import Site
from tests.support import wait_until
from tests.support.proxy import CuttingProxy

PLAN = Plan(seed=0, rounds=8, nodes=2, delay=0.05)
MINUTE = 60.0


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="fedq-out-") as made:
        yield Path(made)


def ends_well(site: Site, link: SuperLink, run: int) -> audit.Audit:
    """The run finishes with the bits of an undisturbed one, and each message was pushed and answered once."""
    wait_until(lambda: site.status(run) == "finished", site.said, timeout=120)
    report = Report(PLAN)
    judge(report, link.run(run).result(timeout=30), undisturbed(PLAN))
    judge_file(report, site.folder / "server")
    assert report.wrong == []
    assert cleanup.remove_run(link.relay, run)
    assert site.stop() == []
    return audit.read(site.folder / "server")


@pytest.mark.slow
@pytest.mark.one_server
def test_a_server_that_answers_nobody_for_a_minute_costs_no_message_a_second_try(folder: Path) -> None:
    with Site(folder, PLAN.nodes, "fork") as site, SuperLink.connect(site.server.url) as link:
        run = link.submit(app.server_app, app.client_app, config=PLAN.config).run_id
        wait_until(lambda: (site.checkpoint(run) or 0) >= 3, "some rounds are done", timeout=60)
        with site.server.paused():
            until = time.monotonic() + MINUTE
            wait_until(lambda: time.monotonic() >= until, "a minute has gone by", timeout=MINUTE + 10)
        found = ends_well(site, link, run)
    # Every lease has lapsed meanwhile, and each holder is as alive as before.
    assert found.redeliveries == 0
    assert len(found.attempts) == 1


@pytest.mark.slow
@pytest.mark.one_server
@pytest.mark.parametrize("isolation", ["fork", "run", "inline"])
def test_replies_that_break_off_in_the_middle_lose_and_repeat_nothing(folder: Path, isolation: str) -> None:
    with Site(folder, PLAN.nodes, isolation, between=cutting) as site, SuperLink.connect(site.server.url) as link:
        run = link.submit(app.server_app, app.client_app, config=PLAN.config, max_deliveries=100, max_attempts=100)
        cutting_proxy = site.proxy
        ends_well(site, link, run.run_id)
        assert cutting_proxy is not None
        assert cutting_proxy.cuts >= 10


def cutting(folder: Path, url: str) -> CuttingProxy:
    return CuttingProxy(folder / "cut.sock", Path(urlsplit(url).path), chance=0.02, seed=5)
