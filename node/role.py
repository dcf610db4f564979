"""The dispatcher's role: one holder per node at a time, by a lease.

Any SuperNode or worker of a node can hold it. A SuperNode that finds another SuperNode's live lease is refused; one
that finds a worker's waits as a standby, as workers always do. Two holders at once, after a pause longer than the
lease, do no harm: claims decide who runs a message.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass, field

from fedq.relay import nodes
from fedq.relay.connection import Relay
from fedq.relay.errors import NodeTaken
from fedq.relay.host import host_id, known_dead

SUPERNODE = "supernode"
WORKER = "worker"


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds the role: ``<kind>-<random>|<host>|<pid>`` in the relay."""

    kind: str
    token: str
    host: str
    pid: int

    @classmethod
    def here(cls, kind: str) -> Holder:
        """A new holder for this process."""
        return cls(kind, secrets.token_hex(6), host_id(), os.getpid())

    @classmethod
    def parse(cls, text: str) -> Holder:
        """The inverse of ``str``; whatever cannot be read becomes a holder that is nobody's."""
        name, _, rest = text.partition("|")
        host, _, pid = rest.rpartition("|")
        kind, _, token = name.partition("-")
        return cls(kind, token, host, int(pid) if pid.isdigit() else 0)

    def __str__(self) -> str:
        return f"{self.kind}-{self.token}|{self.host}|{self.pid}"

    @property
    def dead(self) -> bool:
        """Whether it is certainly gone."""
        return known_dead(self.host, self.pid)


@dataclass(slots=True)
class Role:
    """The role as one process sees it."""

    relay: Relay
    node: str
    holder: Holder
    lease: float = nodes.DISPATCHER_LEASE
    held: bool = field(default=False, init=False)
    other: Holder | None = field(default=None, init=False)
    left: float = field(default=0.0, init=False)

    def take(self, *, at_least: float = 0.0, alive: float | None = None) -> bool:
        """Take or extend the role; a dead holder on this host does not count. Whether it is held now.

        The lease lasts ``at_least`` so many seconds. With ``alive`` the node's heartbeat, good for so many, comes in
        the same step.
        """
        lease = max(self.lease, at_least)
        answer = nodes.take_dispatcher(self.relay, self.node, str(self.holder), lease=lease, alive=alive)
        if not answer.held:
            other = Holder.parse(answer.holder)
            # One with our own process id is of an earlier life: a container whose first process always has id 1.
            reborn = (other.host, other.pid) == (self.holder.host, self.holder.pid)
            if other.dead or reborn:
                answer = nodes.take_dispatcher(
                    self.relay, self.node, str(self.holder), lease=lease, dead=answer.holder, alive=alive
                )
        self.held = answer.held
        self.other = None if answer.held else Holder.parse(answer.holder)
        self.left = answer.left
        return self.held

    def take_or_refuse(self) -> bool:
        """As :meth:`take`, for a SuperNode that starts. False means standby behind a worker of the node.

        Raises:
            NodeTaken: another SuperNode of this name is alive.
        """
        if self.take():
            return True
        assert self.other is not None
        if self.other.kind != SUPERNODE:
            return False
        raise NodeTaken(
            f"a SuperNode named {self.node!r} is already running on {self.other.host.partition('/')[0]} "
            f"(pid {self.other.pid}); stop it, choose another --name, or start additional workers with "
            f"fedq worker --node {self.node} (if it is gone, its lease ends within {self.left:.0f} s)",
            node_id=self.node,
        )

    def drop(self) -> None:
        """Give it back."""
        self.held = False
        nodes.drop_dispatcher(self.relay, self.node, str(self.holder))
