"""How commands reach the server: once, without long waits, with an error that says what to do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedq.relay.connection import Relay


@contextlib.contextmanager
def relay(redis_url: str | None) -> Iterator[Relay]:
    """A handle on the server, for one command. A server that is not there is told at once, not after a backoff."""
    from fedq.relay.connection import Relay

    with Relay.connect(redis_url, client_name="fedq-cli", retries=1) as handle, handle.errors():
        handle.redis.ping()
        yield handle


def require_keeping(handle: Relay) -> None:
    """Raises RelayMisconfigured when the server would throw messages away rather than say that it is full."""
    from fedq.relay.errors import RelayMisconfigured

    server = handle.check()
    if server.policy != "noeviction":
        raise RelayMisconfigured(
            f"the server evicts keys when memory is short (maxmemory-policy {server.policy}), which loses messages: "
            "CONFIG SET maxmemory-policy noeviction; fedq doctor tells more"
        )
