"""How often a node beats: at most as often as the server has time for all of them.

A heartbeat costs the server about a tenth of a millisecond. Some thousand nodes may therefore beat as their settings
say, and of more of them each waits longer, up to three times as long: a federation of ten thousand nodes then takes
less than a tenth of a core while it is idle, and a node that is lost is missed within 40 seconds instead of 16.
"""

from __future__ import annotations

from fedq.relay import nodes
from fedq.relay.connection import Relay

COUNTED = 60.0
"""Seconds between two looks at how many nodes are registered."""

PER_SECOND = 800
"""Heartbeats a second, of all nodes together, up to which each beats as its settings say."""

SLOWEST = 3
"""Times as long as its settings say a node waits at most: within what one heartbeat is good for, whoever sent it."""


class Pace:
    """The pace of one node, whose settings say ``heartbeat`` seconds."""

    def __init__(self, heartbeat: float) -> None:
        self.heartbeat = heartbeat
        self.every = heartbeat
        """Seconds between two heartbeats."""
        self._count_at = float("-inf")

    @property
    def ttl(self) -> float:
        """Seconds that a heartbeat is good for, and the dispatcher's lease with it: three may be missed."""
        return self.every * 3 + 1

    def look(self, relay: Relay, now: float) -> None:
        """Count the nodes, if that was long ago."""
        if now >= self._count_at:
            self.every = paced(self.heartbeat, nodes.count(relay))
            self._count_at = now + COUNTED


def paced(heartbeat: float, count: int) -> float:
    """Seconds between two heartbeats of each of ``count`` nodes whose settings say ``heartbeat``."""
    return min(max(heartbeat, count / PER_SECOND), SLOWEST * heartbeat)
