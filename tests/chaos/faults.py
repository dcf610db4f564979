"""The faults: what each does to a federation, and when it is over."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from fedq.relay.keys import GROUP
from tests.chaos.site import AWAY, Site
from tests.support import processes

LEASE = 15.0
"""Seconds of the longest lease: who is stopped for longer comes back as a zombie."""

AWAY_FOR = LEASE + 8.0
"""Seconds after which a message of somebody who is stopped has been taken over: its lease, and a few looks at it."""


@dataclass
class Fault:
    """A fault that was injected.

    ``undo`` is due ``after`` seconds later; recovery counts from ``since`` on, or from the end of ``undo``
    (``from_undo``), until the run, or ``node``, has got further.
    """

    kind: str
    what: str
    since: float
    after: float = 0.0
    undo: Callable[[], object] | None = None
    from_undo: bool = False
    node: str = ""


Injection = Callable[[Site, random.Random, bool], Fault | None]
"""Site, dice, and whether faults are spaced. None: there is nobody to be hit just now."""


def horse(site: Site, dice: random.Random, spaced: bool) -> Fault | None:
    """The process that runs a ClientApp is killed."""
    node = dice.choice(site.names)
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
    node = dice.choice(site.names)
    workers = site.workers(node)
    if not workers or (spaced and not site.busy(node)):
        return None
    pid = dice.choice(list(workers.values()))
    site.signal(pid, signal.SIGKILL)
    return Fault("worker", f"worker {pid} of {node}", time.monotonic(), node=node)


def node(site: Site, dice: random.Random, spaced: bool) -> Fault | None:
    """A whole SuperNode is killed, and started again some time later."""
    name = dice.choice(site.names)
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
    if not site.server.running:
        return None
    site.server.kill()
    after = 1.0 if spaced else dice.choice([0.0, 0.5, 2.0, 5.0])
    return Fault("redis", "redis", time.monotonic(), after, site.server.start, from_undo=True)


def pause(site: Site, dice: random.Random, spaced: bool) -> Fault | None:
    """A process is stopped for longer than its lease, and comes back as a zombie; or for a moment."""
    kind = dice.choice(["horse", "worker", "zombie", "zombie", "dispatcher", "serverapp", "housekeeping", "redis"])
    place = dice.choice(site.names)
    if kind == "zombie":
        return zombie(site, dice, place)
    if kind in ("serverapp", "housekeeping"):
        place = "superlink"
    if kind == "redis":
        if not site.server.running:
            return None
        pids = [site.server.pid]
    elif not site.services[place].running:
        return None
    elif kind == "horse":
        pids = site.horses(place)
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


def zombie(site: Site, dice: random.Random, place: str) -> Fault | None:
    """A worker is stopped together with what executes for it, until another worker has taken over its message.

    What executes comes back first, so that it reaches its commit before anybody tells it that it was overtaken.
    """
    if not site.services[place].running or not site.busy(place):
        return None
    families = {worker: site.executing(worker) for worker in site.workers(place).values()}
    families = {worker: pids for worker, pids in families.items() if pids and worker not in site.stopped}
    if not families:
        return None
    worker = dice.choice(list(families))
    family = [*families[worker], worker]
    if site.isolation == "inline":
        family.reverse()  # the worker executes, and its child renews
    since = time.monotonic()
    for pid in family:
        site.pause(pid)

    def come_back() -> None:
        site.resume(family[0])
        until = time.monotonic() + 0.5
        while time.monotonic() < until and not processes.gone(family[0]):
            time.sleep(0.01)
        for pid in family[1:]:
            site.resume(pid)

    return Fault(
        "pause", f"worker {worker} of {place} with all it runs, for {AWAY_FOR:g} s", since, AWAY_FOR, come_back
    )


def cut(site: Site, dice: random.Random, spaced: bool) -> Fault | None:
    """Some connections to the server are cut, wherever a request or an answer happens to be."""
    if not site.server.running or site.server.pid in site.stopped:
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
    name = dice.choice(site.names)
    try:
        site.client.script_flush()
        site.client.xgroup_destroy(f"fedq:{{0}}:node:{name}:inbox", GROUP)
    except AWAY:
        return None
    return Fault("forget", f"scripts, and the group of {name}", time.monotonic())


ALL = (horse, worker, node, serverapp, superlink, redis, pause, cut, forget)
KINDS: dict[str, Injection] = {injection.__name__: injection for injection in ALL}
