"""One attempt of a ServerApp: its connections, its hold on the run, and the server's clock.

Whatever the attempt does goes through :meth:`Attempt.do`, which waits for a server that is away, and lets the attempt
end as soon as the run is no longer its own.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

import redis

from fedq.relay import runs
from fedq.relay.connection import Relay
from fedq.relay.errors import RelayError, RelayFull, RelayReadOnly, RelayUnavailable, RevisionLost, RunOver, RunStopped
from fedq.relay.journal import fenced, over
from fedq.relay.pauses import Pauses
from fedq.relay.texts import text

log = logging.getLogger(__name__)
T = TypeVar("T")

PATIENCE = 900.0
"""Seconds that a checkpoint or an event waits for a server which is full."""


class Attempt:
    """An attempt's hold on its run.

    It opens connections of its own, and approves each new one, so that none is lost without its notice.

    Args:
        relay: where the run is.
        run, token, revision: what was claimed.
        on_renewed: called on each new connection before anything else is done with it, the first included.
    """

    def __init__(self, relay: Relay, run: int, token: str, revision: int, *, on_renewed: Callable[[], None]) -> None:
        self.relay = Relay(relay.url, home=relay.home, client_name="fedq-grid", retries=0)
        self.relay.redis.connection_pool.connection_kwargs["redis_connect_func"] = self._connected
        self.run = run
        self.token = token
        self._revision = revision
        self._on_renewed = on_renewed
        self._lost = True
        self._begun = False
        self._approving = False
        self._offset = 0.0
        self.interrupted_at = float("-inf")
        """When it last had to connect again, on the monotonic clock."""

    def close(self) -> None:
        """Close the connections."""
        self.relay.close()

    def do(self, action: Callable[[], T], *, drains: bool = False) -> T:
        """``action``, as often as it takes while the server is away (or, for what ``drains``, full)."""
        pauses: Pauses | None = None
        give_up, said = 0.0, False
        while True:
            reason: RelayError
            try:
                if self._lost:
                    self._recover()
                return action()
            except RelayUnavailable as error:
                self._lost, reason = True, error
            except RunOver as error:
                if not isinstance(error, RunStopped):
                    self.make_sure()  # knows how it ended
                raise
            except (RelayFull, RelayReadOnly) as error:
                if isinstance(error, RelayFull) and not drains:
                    raise
                reason = error
            if pauses is None:
                pauses, give_up = Pauses(), time.monotonic() + PATIENCE
            elif isinstance(reason, RelayFull) and time.monotonic() >= give_up:
                raise reason
            elif not said:
                said = True
                log.warning("%s; waiting for it", reason)
            time.sleep(pauses.next())

    def make_sure(self) -> None:
        """Raise Fenced, RunOver or RevisionLost if this attempt is over."""
        with self.relay.errors():
            raw: Any = self.relay.redis.hmget(self.relay.keys.run(self.run), ["status", "token", "rev"])
        status, token, revision = (text(value or b"") for value in raw)
        if status not in runs.OPEN:
            raise over(self.run, status or "gone")
        if token != self.token:
            raise fenced(self.run)
        self.check_revision(int(revision or 0))

    def check_revision(self, revision: int) -> None:
        """Take in a revision that a step returned; raise RevisionLost if it is smaller than one before."""
        if revision < self._revision:
            raise RevisionLost(
                f"the server has lost the last writes of run {self.run} (revision {revision} after {self._revision}); "
                "the run goes on from its last checkpoint",
                run_id=self.run,
            )
        self._revision = revision

    # -- the clock -----------------------------------------------------------------------------------------------------

    def server_time(self) -> float:
        """The server's clock, in seconds, without asking."""
        return time.monotonic() + self._offset

    def saw(self, now: float) -> None:
        """Take in what time it is there, which a step has just told."""
        self._offset = now - time.monotonic()

    def set_clock(self) -> None:
        """Ask the server what time it is."""
        before = time.monotonic()
        now = self.relay.now()
        self._offset = now - (before + time.monotonic()) / 2

    # -- connections ---------------------------------------------------------------------------------------------------

    def _connected(self, connection: Any) -> None:
        """Called for each new connection: it is used only after a look at what the server still knows.

        redis-py replaces an idle connection that was closed without a word, and the server behind the new one may have
        forgotten writes that the one behind the old had acknowledged.
        """
        connection.on_connect()
        if not self._approving:
            raise redis.exceptions.ConnectionError("the connection was renewed")

    def _recover(self) -> None:
        """On a new connection: is the run still ours, has the server forgotten anything, what was answered?"""
        self._approving = True
        try:
            self.make_sure()
            self.set_clock()
            self._on_renewed()
        finally:
            self._approving = False
        if self._begun:
            self.interrupted_at = time.monotonic()
        self._lost, self._begun = False, True
