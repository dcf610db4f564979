"""``fedq stop`` ends a run everywhere, also apps that never look up, and frees its keys."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import psutil
import pytest

from fedq.apps import ClientApp, Context, Grid, Message, RecordDict, ServerApp
from fedq.relay import cleanup
from fedq.relay.jobs.watch import Timing
from fedq.relay.superlink import SuperLink
from tests.chaos.site import Site
from tests.cli.conftest import Call, call  # noqa: F401
from tests.support import processes, wait_until

KEPT = (":events", ":objs")
"""What the run's hash points at, beside it: its events, and its final arrays if there are any."""


def busy_apps() -> tuple[ServerApp, ClientApp]:
    """Apps that compute for ever, ignore signals that can be ignored, and ask nobody anything."""
    server_app, client_app = ServerApp(), ClientApp()

    @client_app.train()
    def train(message: Message, context: Context) -> Message:
        import signal
        import threading

        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            pass

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        nodes = list(grid.get_node_ids())
        grid.push_messages([Message(RecordDict(), dst_node_id=node, message_type="train") for node in nodes])
        while True:
            pass

    return server_app, client_app


@pytest.mark.slow
@pytest.mark.one_server
@pytest.mark.parametrize("isolation", ["fork", "run", "inline"])
def test_a_run_whose_apps_are_busy_for_ever_is_stopped_everywhere_and_its_keys_are_freed(
    isolation: str,
    call: Call,  # noqa: F811
) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="fedq-stop-") as folder,
        Site(Path(folder), 2, isolation) as site,
        SuperLink.connect(site.server.url) as link,
    ):
        run = link.submit(*busy_apps()).run_id
        places = [*site.names, "superlink"]
        wait_until(lambda: all(computing(site, place) for place in places), "all apps compute", timeout=60)
        horses = [pid for place in places for pid in computing(site, place)]

        call("stop", run, url=site.server.url).succeeds()

        since = time.monotonic()
        wait_until(lambda: all(processes.gone(pid) for pid in horses), "they are gone")
        print(f"{isolation}: gone after {time.monotonic() - since:.2f} s")
        wait_until(lambda: not keys_of(site, run), lambda: f"its keys are gone, not {keys_of(site, run)}")
        print(f"{isolation}: no key after {time.monotonic() - since:.2f} s")
        assert cleanup.remove_run(link.relay, run)
        wait_until(site.complete, site.said, timeout=60)
        assert site.stop() == []


def test_renewals_come_often_enough_for_a_stop_within_two_seconds() -> None:
    """A process is killed as soon as the renewal under way hears that its run is over."""
    assert Timing().renew <= 1.0


def computing(site: Site, place: str) -> list[int]:
    """The processes of a service in which an app computes."""
    if place == "superlink":
        workers = list(site.workers(place).values())
    else:
        workers = [held.worker for held in site.held(place)]
        if site.isolation == "inline":
            return workers
    return [pid for worker in workers for pid in site.executing(worker) if spins(pid)]


def spins(pid: int) -> bool:
    """Whether the process has computed for a while."""
    try:
        return sum(psutil.Process(pid).cpu_times()[:2]) > 0.5
    except psutil.Error:
        return False


def keys_of(site: Site, run: int) -> list[str]:
    """The keys that only a run under way has, and what waits for the nodes."""
    ours = [key.decode() for key in site.client.scan_iter("fedq:*", count=1000)]
    mine = [key for key in ours if str(run) in key.split(":")[2:] and not key.endswith((f"run:{run}", *KEPT))]
    waiting = [name for name in site.names if any(f[b"kind"] == b"message" for _, f in inbox(site, name))]
    return [*mine, *waiting, *(key for key in ours if key.endswith(":claims"))]


def inbox(site: Site, name: str) -> list[tuple[bytes, dict[bytes, bytes]]]:
    found: list[tuple[bytes, dict[bytes, bytes]]] = site.client.xrange(f"fedq:{{0}}:node:{name}:inbox")
    return found
