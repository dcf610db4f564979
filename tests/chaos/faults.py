"""The faults: what each does to a federation, and when it is over."""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedq.relay.keys import GROUP
from tests.chaos.site import AWAY, Site

LEASE = 15.0
"""Seconds of the longest lease: who is stopped for longer comes back as a zombie."""

TAKEN_OVER = 120.0
"""Seconds after which a zombie comes back though nobody has taken over its message, which counts as stuck then."""

RARE = 0.1
"""The share of a storm's zombies that are made: each one keeps the server and its own node out of the storm."""


@dataclass
class Fault:
    """A fault that was injected.

    ``undo`` is due when ``until`` says so, ``after`` seconds later at the latest; recovery counts from ``since`` on, or
    from the end of ``undo`` (``from_undo``), until the run, or ``node``, has got further.
    """

    kind: str
    what: str
    since: float
    after: float = 0.0
    undo: Callable[[], object] | None = None
    from_undo: bool = False
    node: str = ""
    until: Callable[[], bool] = lambda: False


Injection = Callable[[Site, random.Random, bool], Fault | None]
"""Site, dice, and whether faults are spaced. None: there is nobody to be hit just now."""


def horse(site: Site, dice: random.Random, spaced: bool) -> Fault | None:
    """The process that runs a ClientApp is killed."""
    node = dice.choice(site.exposed)
    if spaced and not site.busy(node):
        return None
    horses = site.horses(node)
    if not horses:
        return None
    pid = dice.choice(horses)
    site.signal(pid, signal.SIGKILL)
    return Fault("horse", f"horse {pid} of {node}", time.monotonic(), node=node)


def worker(site: Site, dice: random.Random, spaced: bool) -> Fault | None:
    """A worker of a node is killed; the process that runs its ClientApp has to go with it."""
    node = dice.choice(site.exposed)
    workers = site.workers(node)
    if not workers or (spaced and not site.busy(node)):
        return None
    pid = dice.choice(list(workers.values()))
    site.signal(pid, signal.SIGKILL)
    return Fault("worker", f"worker {pid} of {node}", time.monotonic(), node=node)


def node(site: Site, dice: random.Random, spaced: bool) -> Fault | None:
    """A whole SuperNode is killed, and started again some time later."""
    name = dice.choice(site.exposed)
    if not site.services[name].running:
        return None
    site.services[name].kill()
    after = 0.5 if spaced else dice.choice([0.0, 1.0, 3.0])
    return Fault("node", name, time.monotonic(), after, lambda: site.start(name), from_undo=True)


def serverapp(site: Site, dice: random.Random, spaced: bool) -> Fault | None:
    """The process of the ServerApp, or its worker, is killed."""
    if not site.services["superlink"].running:
        return None
    workers, horses = list(site.workers("superlink").values()), site.horses("superlink")
    if not workers or not horses:
        return None
    pid = dice.choice(horses) if dice.random() < 0.5 else dice.choice(workers)
    site.signal(pid, signal.SIGKILL)
    return Fault("serverapp", f"{'horse' if pid in horses else 'worker'} {pid} of the SuperLink", time.monotonic())


def superlink(site: Site, dice: random.Random, spaced: bool) -> Fault | None:
    """The whole SuperLink is killed, and another one started some time later."""
    if not site.services["superlink"].running:
        return None
    site.services["superlink"].kill()
    after = 0.5 if spaced else dice.choice([0.0, 1.0, 3.0])
    return Fault("superlink", "superlink", time.monotonic(), after, lambda: site.start("superlink"), from_undo=True)


def redis(site: Site, dice: random.Random, spaced: bool) -> Fault | None:
    """The server is killed, and started again some time later on what its append-only file holds."""
    if not site.server.running or site.sheltered:
        return None
    site.server.kill()
    after = 1.0 if spaced else dice.choice([0.0, 0.5, 2.0, 5.0])
    return Fault("redis", "redis", time.monotonic(), after, site.server.start, from_undo=True)


def pause(site: Site, dice: random.Random, spaced: bool) -> Fault | None:
    """A process is stopped for longer than its lease, or for a moment."""
    kind = dice.choice(["horse", "worker", "dispatcher", "serverapp", "housekeeping", "redis"])
    place = dice.choice(site.exposed)
    if kind in ("serverapp", "housekeeping"):
        place = "superlink"
    if kind == "redis":
        if not site.server.running or site.sheltered:
            return None
        pids = [site.server.pid]
    elif not site.services[place].running:
        return None
    elif kind == "horse":
        pids = site.horses(place)
    elif kind == "worker":
        pids = list(site.workers(place).values())
    elif kind == "serverapp":
        pids = [*site.horses(place), *site.workers(place).values()]
    else:
        pids = [pid for name, pid in site.children(place).items() if name.startswith(kind)]
    pids = [pid for pid in pids if pid not in site.stopped]
    if not pids:
        return None
    pid = dice.choice(pids)
    after = dice.choice([1.0, 4.0, LEASE + 10.0] if kind == "redis" else [1.0, LEASE + 3.0])
    since = time.monotonic()
    site.pause(pid)
    what = f"{kind} {pid} of {place} for {after:g} s"
    return Fault("pause", what, since, after, lambda: site.resume(pid), from_undo=kind == "redis")


def zombie(site: Site, dice: random.Random, spaced: bool) -> Fault | None:
    """A worker is stopped in the midst of a ClientApp, with all it runs, and comes back when another has taken over.

    What executes comes back first, so that it reaches its commit before anybody tells it that it was overtaken. A lease
    lapses only while the server is there all the time, so in a storm the server, and the node, are spared meanwhile.
    """
    if site.sheltered or not (spaced or dice.random() < RARE):
        return None
    place = dice.choice(site.names)
    held = site.held(place)
    if not held or not site.services[place].running or len(site.workers(place)) < 2:
        return None
    claim = dice.choice(held)
    since = time.monotonic()
    # The worker first, which could start another one.
    family = [claim.worker]
    site.pause(claim.worker)
    family += (children := site.executing(claim.worker))
    for pid in children:
        site.pause(pid)
    if claim not in site.held(place) or not children:
        # It was done before it stood still.
        for pid in family:
            site.resume(pid)
        return None
    site.sheltered = place

    def come_back() -> None:
        executes = [claim.worker] if site.isolation == "inline" else children
        for pid in executes:
            site.resume(pid)
        first_to_end(executes, timeout=1.0)
        for pid in family:
            site.resume(pid)
        site.sheltered = ""

    def taken_over() -> bool:
        return not any(still.token == claim.token for still in site.held(place))

    what = f"worker {claim.worker} of {place} with all it runs"
    return Fault("zombie", what, since, TAKEN_OVER, come_back, node=place, until=taken_over)


def first_to_end(pids: Sequence[int], timeout: float) -> None:
    """Wait until one of the processes has ended, ``timeout`` seconds at most."""
    with contextlib.ExitStack() as stack:
        watched = []
        for pid in pids:
            try:
                descriptor = os.pidfd_open(pid)
            except ProcessLookupError:
                return
            stack.callback(os.close, descriptor)
            watched.append(descriptor)
        select.select(watched, [], [], timeout)


def cut(site: Site, dice: random.Random, spaced: bool) -> Fault | None:
    """Some connections to the server are cut, wherever a request or an answer happens to be."""
    if not site.server.running or site.server.pid in site.stopped or site.sheltered:
        return None
    connections = site.connections()
    if not connections:
        return None
    number = dice.randint(1, len(connections))
    for connection in dice.sample(connections, number):
        try:
            site.client.client_kill_filter(_id=connection["id"])
        except (*AWAY, ValueError):
            return None
    return Fault("cut", f"{number} connections", time.monotonic())


def forget(site: Site, dice: random.Random, spaced: bool) -> Fault | None:
    """The server forgets the scripts, and the consumer group of an inbox."""
    if not site.server.running or site.server.pid in site.stopped:
        return None
    name = dice.choice(site.exposed)
    try:
        site.client.script_flush()
        site.client.xgroup_destroy(f"fedq:{{0}}:node:{name}:inbox", GROUP)
    except AWAY:
        return None
    return Fault("forget", f"scripts, and the group of {name}", time.monotonic())


ALL = (horse, worker, node, serverapp, superlink, redis, pause, zombie, cut, forget)
KINDS: dict[str, Injection] = {injection.__name__: injection for injection in ALL}
