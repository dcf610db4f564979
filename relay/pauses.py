"""How long to wait before the next attempt to reach a server that is away."""

from __future__ import annotations

from redis.backoff import EqualJitterBackoff


class Pauses:
    """Growing pauses: half of each is chance, so that those who lost the server together do not come back all at once.

    ``most`` bounds how long a server that is back waits to be noticed, and so how fast a federation recovers. Two such
    waits may follow one upon the other: a node that may not load the steps waits for a SuperLink that does.
    """

    def __init__(self, first: float = 0.05, most: float = 0.5) -> None:
        self._backoff = EqualJitterBackoff(cap=most, base=first / 2)
        self._taken = 0

    @property
    def begun(self) -> bool:
        """Whether any was taken since the start or the last :meth:`reset`."""
        return self._taken > 0

    def next(self) -> float:
        """The next pause, in seconds."""
        self._taken += 1
        return float(self._backoff.compute(self._taken))

    def reset(self) -> None:
        """The server was there: begin again with short ones."""
        self._taken = 0
