"""``fedq superlink``: housekeeping, and workers that run ServerApps.

supervisor ── housekeeping ── serverapp-0 … serverapp-n
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from fedq.apps.errors import FedqError
from fedq.apps.lazy import load
from fedq.relay import scripts
from fedq.relay.connection import Relay, ServerInfo, patiently, resolve_url, without_password
from fedq.relay.embedded import EmbeddedServer
from fedq.relay.errors import RelayMisconfigured
from fedq.relay.housekeeping import KEEP_FAILED, RETENTION, Housekeeper
from fedq.relay.jobs import AppWorker, ChildContext, ChildSpec, Supervisor
from fedq.relay.jobs.signals import StopSignal
from fedq.relay.keys import SERVERAPP_QUEUE
from fedq.relay.logs import set_up_logging
from fedq.relay.serverapps import ServerAppWork, Settings
from fedq.relay.serverprogram import EmbeddedServerError
from fedq.relay.threads import limit_threads

log = logging.getLogger(__name__)

SAY_AGAIN = 10.0
"""Seconds after which a service that still waits for its server says so again."""
REVIVE_FIRST, REVIVE_MOST = 0.2, 10.0
"""Seconds before a private server that has ended is started again: the first time, and the most."""
KILL_MARGIN = 5.0
"""Seconds beyond the grace time that a worker has to give its run back."""


class SuperLinkFailed(FedqError):
    """The service ended because one of its processes could not go on."""


def run_superlink(
    url: str | None = None,
    *,
    slots: int = 4,
    grace: float = 30.0,
    embedded_dir: str | os.PathLike[str] | None = None,
    log_format: str = "text",
    retention: float = RETENTION,
    keep_failed: float = KEEP_FAILED,
    cache_dir: str | os.PathLike[str] | None = None,
    threads: int | None = 1,
) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit status.

    Waits for a server that is not there yet. After the signal running ServerApps may finish within ``grace`` seconds;
    what is killed then goes on from its checkpoint at another SuperLink, or when this one starts again.

    Args:
        url: the server; None takes FEDQ_REDIS_URL, REDIS_URL or the local one.
        slots: ServerApps at a time.
        embedded_dir: start a private server with its data there, and write its address to ``url`` in it. It is
            started again whenever it ends by itself.
        log_format: ``text`` or ``json``.
        retention: seconds that ended runs are kept.
        keep_failed: seconds that a failed run can be resumed from its last checkpoint.
        threads: threads of the numerical libraries in each slot, unless the environment says otherwise; None: leave
            them alone.
        cache_dir: where project directories are extracted; by default in the user's cache folder.

    Raises:
        RelayAuthError: the server refuses us. RelayMisconfigured: the server would lose messages.
        EmbeddedServerError: the private server does not start.
    """
    limit_threads(threads)
    set_up_logging(log_format)
    with contextlib.ExitStack() as stack:
        told = stack.enter_context(StopSignal())
        keeper: ServerKeeper | None = None
        if embedded_dir is not None:
            server = stack.enter_context(EmbeddedServer(Path(embedded_dir)))
            url = server.url
            keeper = ServerKeeper(server)
            log.info("%s serves at %s", server.program, without_password(url))
        address = resolve_url(url)
        info = _wait_for(address, told)
        log.info(
            "SuperLink: %d slot%s, server %s %s at %s",
            slots,
            "" if slots == 1 else "s",
            info.kind,
            info.version,
            without_password(address),
        )
        if not info.aof:
            log.warning("the server keeps no append-only file: a restart of it forgets every run (fedq doctor)")
        folder = Path(cache_dir) if cache_dir is not None else _cache_folder()
        settings = Settings(address, folder)
        workers = [ChildSpec(f"serverapp-{n}", partial(_work, settings, n, grace)) for n in range(slots)]
        keep_house = partial(_keep_house, address, slots, retention, keep_failed)
        housekeeping = ChildSpec("housekeeping", keep_house, last=True)
        list(load("fedq.apps", "fedq.apps.strategy"))  # what ServerApps import is there before anything is forked
        supervisor = Supervisor([housekeeping, *workers], grace=grace + KILL_MARGIN, told=told, beside=keeper)
        status = supervisor.run()
        if supervisor.failure:
            raise SuperLinkFailed(supervisor.failure)
        log.info("SuperLink has ended")
    return status


class ServerKeeper:
    """Starts the private server again when it has ended by itself, as a supervisor of the machine would.

    Called often, by the process that started it; gives the server's pid and the seconds until the next call is due.
    """

    def __init__(self, server: EmbeddedServer, clock: Callable[[], float] = time.monotonic) -> None:
        self._server = server
        self._clock = clock
        self._pid = server.pid
        self._launched = clock()
        self._due: float | None = None
        self._pause = 0.0

    def __call__(self) -> tuple[int, float | None]:
        now = self._clock()
        if self._server.running:
            self._due = None
        elif self._due is None:
            # One that ends again and again must not keep the machine busy.
            old = now - self._launched >= REVIVE_MOST
            self._pause = REVIVE_FIRST if old else min(REVIVE_MOST, max(REVIVE_FIRST, 2 * self._pause))
            self._due = now + self._pause
            log.warning(
                "the private server has ended (%s); %s/server.log may tell why",
                self._server.end,
                self._server.directory,
            )
        elif now >= self._due:
            try:
                self._server.revive()
            except EmbeddedServerError as error:
                log.warning("the private server does not start again: %s", error)
                self._pause = min(REVIVE_MOST, 2 * self._pause)
                self._due = now + self._pause
            else:
                self._pid, self._launched, self._due = self._server.pid, now, None
                log.info("the private server is started again, pid %d", self._pid)
        return self._pid, None if self._due is None else max(0.0, self._due - now)


def _wait_for(address: str, told: StopSignal) -> ServerInfo:
    """The server's words about itself, as soon as it is there; the steps are loaded then."""
    said_at = float("-inf")

    def on_wait(error: FedqError, pause: float) -> None:
        nonlocal said_at
        if time.monotonic() - said_at >= SAY_AGAIN:
            said_at = time.monotonic()
            log.warning("SuperLink: %s; waiting for it", error)

    def look(relay: Relay) -> ServerInfo:
        info = relay.check()
        with relay.errors():
            scripts.load(relay.redis)
        return info

    with Relay(address, client_name="fedq-superlink", retries=0) as relay:
        try:
            info = patiently(lambda: look(relay), on_wait=on_wait, stop=lambda: told.requested, wait=told.wait)
        finally:
            told.leave_if_requested()
    if info.policy != "noeviction":
        raise RelayMisconfigured(
            f"the server at {without_password(address)} evicts keys when its memory is full "
            f"(maxmemory-policy {info.policy}) and would lose messages; set maxmemory-policy noeviction"
        )
    return info


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "fedq" / "superlink"


# -- the processes -----------------------------------------------------------------------------------------------------


def _keep_house(address: str, slots: int, retention: float, keep_failed: float, context: ChildContext) -> None:
    with Relay(address, client_name="fedq-housekeeping", retries=0) as relay:
        housekeeper = Housekeeper(relay, slots=slots, retention=retention, keep_failed=keep_failed)
        signal.signal(signal.SIGTERM, housekeeper.stop)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        housekeeper.run()


def _work(settings: Settings, number: int, grace: float, context: ChildContext) -> None:
    """A worker's process: one slot."""
    queue = Relay(settings.url, client_name="fedq-serverapps")
    AppWorker(
        ServerAppWork(settings),
        queue=SERVERAPP_QUEUE,
        connection=queue.redis,
        isolation="fork",
        number=number,
        grace=grace,
        context=context,
    ).work()


__all__ = ["SuperLinkFailed", "run_superlink"]
