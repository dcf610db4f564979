"""The long-running services of a node: ``fedq supernode`` and ``fedq worker``.

Each is a supervisor with children: a dispatcher, and one worker per slot::

    fedq supernode   supervisor ── dispatcher (holds the role) ── worker-0 … worker-n
    fedq worker      supervisor ── dispatcher (standby)        ── worker-0 … worker-n
"""

from __future__ import annotations

import contextlib
import json
import logging
import platform
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import metadata
from typing import Any, TypeVar

from fedq.apps.errors import FedqError
from fedq.node.clientapps import ClientAppWork
from fedq.node.dispatcher import Dispatcher
from fedq.node.imposed import Imposed, ModsDiffer, check_same
from fedq.node.pace import Pace
from fedq.node.role import SUPERNODE, WORKER, Holder, Role
from fedq.node.settings import NodeSettings
from fedq.node.virtual import known_service
from fedq.node.virtualdispatcher import VirtualDispatcher
from fedq.node.virtualjobs import VirtualWork
from fedq.relay import nodes
from fedq.relay.connection import Relay, patiently, resolve_url, without_password
from fedq.relay.errors import RelayMisconfigured
from fedq.relay.jobs import AppWorker
from fedq.relay.jobs.child import ChildContext, ChildSpec, Fatal
from fedq.relay.jobs.processes import poll
from fedq.relay.jobs.signals import StopSignal
from fedq.relay.jobs.supervisor import Supervisor
from fedq.relay.logs import set_up_logging
from fedq.relay.threads import limit_threads

logger = logging.getLogger(__name__)

T = TypeVar("T")

SAY_AGAIN = 10.0
"""Seconds after which a service that still waits for its server says so again."""
KILL_MARGIN = 5.0
"""Seconds beyond the grace time that a worker has to give its message back."""


class ServiceFailed(FedqError):
    """The service ended because one of its processes could not go on."""


def run_supernode(settings: NodeSettings) -> int:
    """Serve a node until SIGTERM or SIGINT; returns the exit status.

    Waits for a server that is not there yet. After the signal running ClientApps may finish within ``settings.grace``
    seconds; what is killed then is given back and tried again. At the end the node is offline and its name is free.

    Raises:
        NodeTaken: another SuperNode of this name is alive.
        RelayAuthError: the server refuses us. RelayMisconfigured: the server would lose messages.
        SettingsError: a mod that is to be imposed cannot be had.
    """
    with StopSignal() as told:
        return _run_supernode(settings, told)


def _run_supernode(settings: NodeSettings, told: StopSignal) -> int:
    _prepare(settings)
    holder = Holder.here(SUPERNODE)

    def check_in(relay: Relay) -> bool:
        _check_server(relay)
        # A child extends this lease under the same name; until it does, nobody else gets the role.
        held = Role(relay, settings.name, holder, lease=Pace(settings.heartbeat).ttl).take_or_refuse()
        if not held:
            # The worker that dispatches finds the difference, if there is one, and ends.
            nodes.impose(relay, settings.name, settings.mods)
        return held

    if not _with_server(settings, check_in, told):
        logger.info("node %s: an additional worker dispatches at the moment; standing by", settings.name)
    logger.info("SuperNode %s: %s", settings.name, _describe(settings))
    _say_trust(settings)
    _say_mods(settings)
    return _serve(settings, holder, told)


def run_worker(settings: NodeSettings) -> int:
    """Serve as additional workers of a node, on this machine; returns the exit status after SIGTERM or SIGINT.

    ``settings.name`` names the node. Labels default to those that its SuperNode registered; config and mods do not
    travel, and have to be given as they are there. Takes over the dispatcher's role when no SuperNode of the name holds
    it.

    Raises:
        ModsDiffer: the SuperNode imposes other mods. Found out later, it ends the service (`ServiceFailed`).
    """
    with StopSignal() as told:
        return _run_worker(settings, told)


def _run_worker(settings: NodeSettings, told: StopSignal) -> int:
    _prepare(settings)
    holder = Holder.here(WORKER)

    def check_in(relay: Relay) -> NodeSettings:
        _check_server(relay)
        check_same(settings.name, settings.mods, nodes.imposed(relay, settings.name))
        with relay.errors():
            raw: Any = relay.redis.hget(relay.keys.node_info(settings.name), "labels")
        if raw is None:
            logger.warning("node %s is not registered yet; its SuperNode will do that", settings.name)
        labels = settings.labels or json.loads(raw or "{}")
        if service := known_service(relay, settings.name):
            count, config = service
            return replace(settings, labels=labels, virtual=count, config={**config, **settings.config})
        return replace(settings, labels=labels)

    settings = _with_server(settings, check_in, told)
    logger.info("worker of node %s: %s", settings.name, _describe(settings))
    _say_trust(settings)
    _say_mods(settings)
    return _serve(settings, holder, told)


# -- start -------------------------------------------------------------------------------------------------------------


def _prepare(settings: NodeSettings) -> None:
    limit_threads(settings.threads)
    set_up_logging(settings.log_format)
    # A mod that cannot be had ends the service before it has said a word to the server.
    Imposed(settings.mods)


def _with_server(settings: NodeSettings, action: Callable[[Relay], T], told: StopSignal) -> T:
    """``action`` on a connection that is closed afterwards, as soon as there is a server."""
    said_at = float("-inf")

    def on_wait(error: FedqError, pause: float) -> None:
        nonlocal said_at
        if time.monotonic() - said_at >= SAY_AGAIN:
            said_at = time.monotonic()
            logger.warning("node %s: %s; waiting for it", settings.name, error)

    with Relay.connect(settings.redis_url, client_name=f"fedq-{settings.name}", retries=0) as relay:
        try:
            return patiently(lambda: action(relay), on_wait=on_wait, stop=lambda: told.requested, wait=told.wait)
        finally:
            told.leave_if_requested()


def _check_server(relay: Relay) -> None:
    info = relay.check()
    if info.policy != "noeviction":
        raise RelayMisconfigured(
            f"the server at {without_password(relay.url)} evicts keys when its memory is full "
            f"(maxmemory-policy {info.policy}) and would lose messages; set maxmemory-policy noeviction"
        )


def _describe(settings: NodeSettings) -> str:
    parts = [
        f"{settings.slots} slot{'s' if settings.slots > 1 else ''}",
        f"isolation {settings.isolation}",
        f"server {without_password(resolve_url(settings.redis_url))}",
    ]
    if settings.virtual:
        parts.append(f"{settings.virtual} virtual nodes")
    if settings.labels:
        parts.append("labels " + " ".join(f"{key}={value}" for key, value in sorted(settings.labels.items())))
    if not settings.ship_logs:
        parts.append("logs of apps stay here")
    return ", ".join(parts)


def _say_trust(settings: NodeSettings) -> None:
    level = logging.WARNING if settings.trust.anything else logging.INFO
    logger.log(level, "node %s %s", settings.name, settings.trust.describe())


def _say_mods(settings: NodeSettings) -> None:
    if not settings.mods:
        return
    logger.info("node %s imposes, from the outside in: %s", settings.name, ", ".join(settings.mods))
    if settings.ship_logs:
        logger.warning(
            "node %s: mods do not see what apps print and log; --no-ship-logs keeps that here", settings.name
        )


def _info(settings: NodeSettings, holder: Holder) -> nodes.NodeInfo:
    details: dict[str, Any] = {"python": platform.python_version(), "system": platform.platform(terse=True)}
    for package in ("fedq", "numpy"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            details[package] = metadata.version(package)
    return nodes.NodeInfo(
        labels=settings.labels,
        slots=settings.slots,
        isolation=settings.isolation,
        host=holder.host.partition("/")[0],
        pid=holder.pid,
        details=details,
        mods=settings.mods,
    )


# -- the processes -----------------------------------------------------------------------------------------------------


def _serve(settings: NodeSettings, holder: Holder, told: StopSignal) -> int:
    workers = [ChildSpec(f"worker-{n}", partial(_work, settings, n)) for n in range(settings.slots)]
    # The dispatcher goes last: the node is there until its last ClientApp has finished.
    dispatcher = ChildSpec("dispatcher", partial(_dispatch, settings, holder), events=True, last=True)
    supervisor = Supervisor([dispatcher, *workers], grace=settings.grace + KILL_MARGIN, told=told)
    status = supervisor.run()
    if supervisor.failure:
        raise ServiceFailed(supervisor.failure)
    logger.info("node %s has ended", settings.name)
    return status


def _dispatch(settings: NodeSettings, holder: Holder, context: ChildContext) -> None:
    """The dispatcher's process."""
    relay = Relay.connect(settings.redis_url, client_name=f"fedq-{settings.name}-dispatcher")
    queue = Relay.connect(settings.queue_url or settings.redis_url, client_name=f"fedq-{settings.name}-queue")
    role = Role(relay, settings.name, holder, lease=Pace(settings.heartbeat).ttl)
    kind = VirtualDispatcher if settings.virtual else Dispatcher
    dispatcher = kind(settings, relay, queue, role, _info(settings, holder))
    signal.signal(signal.SIGTERM, lambda *_: dispatcher.stop())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_listen, args=(context, dispatcher), name="supervisor-events", daemon=True).start()
    try:
        dispatcher.run()
    except ModsDiffer as error:
        raise Fatal(str(error)) from error


def _listen(context: ChildContext, dispatcher: Dispatcher) -> None:
    """Tell the dispatcher at once when a worker of this service has died."""
    while True:
        poll([context.events], None)
        lines = context.receive()
        for line in lines:
            if "died" in line:
                dispatcher.nudge(f"{line['died']} died")
        if not lines:
            # Readable without a line: half of one, or the supervisor is gone and this process with it.
            time.sleep(0.05)


def _work(settings: NodeSettings, number: int, context: ChildContext) -> None:
    """A worker's process: one slot."""
    queue = Relay.connect(settings.queue_url or settings.redis_url, client_name=f"fedq-{settings.name}-worker")
    AppWorker(
        VirtualWork(settings) if settings.virtual else ClientAppWork(settings),
        queue=settings.name,
        connection=queue.redis,
        isolation=settings.isolation,
        number=number,
        grace=settings.grace,
        context=context,
    ).work()


__all__ = ["ServiceFailed", "run_supernode", "run_worker"]
