"""The handle on one relay server: connections, keys and scripts.

Every step of the relay takes a :class:`Relay`. redis-py repeats a command whose answer got lost, so that every step
must be idempotent; ours are, by message id, token or owner.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.retry import Retry

from fedq.apps.errors import FedqError
from fedq.relay import scripts
from fedq.relay.errors import (
    RelayAuthError,
    RelayError,
    RelayFull,
    RelayReadOnly,
    RelayUnavailable,
)
from fedq.relay.keys import Keys
from fedq.relay.pauses import Pauses

T = TypeVar("T")

URL_VARIABLES = ("FEDQ_REDIS_URL", "REDIS_URL")
DEFAULT_URL = "redis://127.0.0.1:6379"
SOCKET_TIMEOUT = 10.0
"""Seconds without an answer after which a connection counts as lost; blocking reads add their block time."""

LOST = (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError)
"""What redis-py raises when the server is away (both also cover a server that is still loading)."""


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What the server says of itself."""

    kind: str
    version: str
    run_id: str
    role: str
    maxmemory: int
    policy: str
    aof: bool
    fsync: str


def resolve_url(url: str | None = None) -> str:
    """The address to use: the argument, FEDQ_REDIS_URL, REDIS_URL, or the local default."""
    if url:
        return url
    for variable in URL_VARIABLES:
        if value := os.environ.get(variable):
            return value
    return DEFAULT_URL


def without_password(url: str) -> str:
    """``url`` for logs and errors, its password and query left out; of what is no address, nothing that may be one."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url.rpartition("@")[2].partition("?")[0]
    if "@" not in rest:
        return f"{scheme}://{rest.partition('?')[0]}"
    if not _well_formed(url):
        return f"{scheme}://…"
    parts = urlsplit(url)
    user, place = parts.netloc.rpartition("@")[0].partition(":")[0], parts.netloc.rpartition("@")[2]
    place = f"{user}@{place}" if user else place
    # Not urlunsplit, which leaves out the slashes before an empty place: unix:///run/redis.sock is to be copied.
    return f"{parts.scheme}://{place}{parts.path}"


def _well_formed(url: str) -> bool:
    """Whether the password of ``url`` is where a parser looks for it."""
    try:
        parts = urlsplit(url)
        return "@" in parts.netloc and (parts.port is None or parts.port > 0)
    except ValueError:
        return False


class Relay:
    """One server, seen through its keys and steps.

    Safe to share between threads, not between processes: a forked child calls :meth:`again`.
    """

    def __init__(
        self,
        url: str,
        *,
        home: str = "0",
        client_name: str = "fedq",
        retries: int = 3,
        timeout: float = SOCKET_TIMEOUT,
    ) -> None:
        self.url = url
        self.home = home
        self.keys = Keys(home)
        self.client_name = client_name
        self._retries = retries
        self._timeout = timeout
        self.memory_seen: tuple[float, int, int] = (float("-inf"), 0, 0)
        """When the server was last asked for its memory (monotonic), what was used and announced since, the limit."""
        try:
            self.redis: redis.Redis = redis.Redis.from_url(
                url,
                decode_responses=False,
                protocol=2,
                client_name=client_name,
                # Else redis-py looks its own version up in its metadata, which takes longer than a small message, and
                # tells it with two requests per connection.
                driver_info=None,
                socket_timeout=timeout,
                socket_connect_timeout=min(timeout, 5.0),
                retry=Retry(ExponentialBackoff(cap=0.5, base=0.02), retries),
            )
        except ValueError as error:
            # What the parser says of a password that looks like a port or a path holds a part of it.
            why = f" ({error})" if "@" not in url else ""
            raise RelayError(
                f"{without_password(url)!r} is no address of a Redis server{why}; use redis://host:port/db, rediss://… "
                "or unix:///path/to/socket, and in a password %2F for /, %23 for #, %3F for ? and %40 for @"
            ) from None

    @classmethod
    def connect(
        cls,
        url: str | None = None,
        *,
        home: str = "0",
        client_name: str = "fedq",
        retries: int = 3,
        timeout: float = SOCKET_TIMEOUT,
    ) -> Relay:
        """A handle on the server at ``url`` (default: FEDQ_REDIS_URL, REDIS_URL, the local one). Connects lazily."""
        return cls(resolve_url(url), home=home, client_name=client_name, retries=retries, timeout=timeout)

    def again(self, *, client_name: str | None = None) -> Relay:
        """A new handle on the same server with connections of its own."""
        return Relay(
            self.url,
            home=self.home,
            client_name=client_name or self.client_name,
            retries=self._retries,
            timeout=self._timeout,
        )

    def close(self) -> None:
        """Close every connection. The handle connects again when it is used again."""
        self.redis.close()
        self.redis.connection_pool.disconnect()

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- steps -------------------------------------------------------------------------------------------------------

    def call(self, name: str, keys: Sequence[str], args: Sequence[Any]) -> list[Any]:
        """Run the step ``name`` (a file of ``relay/lua``). Loads the scripts when the server does not know them."""
        with self.errors():
            return scripts.call(self.redis, name, keys, args)

    def together(self, *requests: scripts.StepCall | tuple[Any, ...]) -> list[Any]:
        """Steps and commands in one round trip, see :func:`fedq.relay.scripts.together`."""
        with self.errors():
            return scripts.together(self.redis, *requests)

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Turn redis-py's errors into ours, with words for people."""
        try:
            yield
        except RedisError as error:
            raise translate(error, self.url) from error

    def now(self) -> float:
        """The server's clock, in seconds since the epoch."""
        with self.errors():
            seconds, micros = self.redis.time()
        return float(seconds) + micros / 1e6

    def block(self, milliseconds: float) -> int:
        """A BLOCK argument that ends well before the socket would be given up."""
        return max(1, min(int(milliseconds), int(self._timeout * 500)))

    # -- the server --------------------------------------------------------------------------------------------------

    def check(self) -> ServerInfo:
        """Ask the server who it is. Raises RelayUnavailable, RelayAuthError or another RelayError in one line."""
        with self.errors():
            info: dict[str, Any] = self.redis.info()
        fsync = ""
        with contextlib.suppress(RedisError):
            fsync = str(self.redis.config_get("appendfsync").get("appendfsync") or "")
        valkey = info.get("valkey_version") or (info.get("server_name") == "valkey" and info.get("redis_version"))
        return ServerInfo(
            kind="valkey" if valkey else "redis",
            version=str(valkey or info.get("redis_version", "?")),
            run_id=str(info.get("run_id", "")),
            role=str(info.get("role", "master")),
            maxmemory=int(info.get("maxmemory", 0)),
            policy=str(info.get("maxmemory_policy", "noeviction")),
            aof=bool(int(info.get("aof_enabled", 0))),
            fsync=fsync,
        )

    def memory(self) -> tuple[int, int]:
        """Bytes used and the server's limit (0: none)."""
        with self.errors():
            info = self.redis.info("memory")
        return int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))


def translate(error: BaseException, url: str) -> FedqError:
    """The error to show for what redis-py raised."""
    place = without_password(url)
    if isinstance(error, FedqError):
        return error
    text = str(error)
    if isinstance(error, (AuthenticationError, AuthorizationError)) or text.startswith(("NOAUTH", "WRONGPASS")):
        return RelayAuthError(
            f"the server at {place} wants another user or password; put them into the address, "
            "as in redis://user:password@host:6379 (or set FEDQ_REDIS_URL)"
        )
    if isinstance(error, NoPermissionError) or text.startswith("NOPERM"):
        return RelayAuthError(f"the server at {place} does not allow this user to do that ({text}); see fedq nodes acl")
    if isinstance(error, BusyLoadingError):
        return RelayUnavailable(f"the server at {place} is still loading its data; try again in a moment")
    if isinstance(error, LOST):
        return RelayUnavailable(
            f"no Redis server answers at {place} ({text.rstrip('.')}); start one (fedq superlink --embedded DIR "
            "brings its own) or name another with --redis-url or FEDQ_REDIS_URL"
        )
    if isinstance(error, ReadOnlyError) or "READONLY" in text[:60]:
        return RelayReadOnly(
            f"the server at {place} accepts no writes (it is a replica); use the address of its primary"
        )
    if isinstance(error, OutOfMemoryError) or "OOM" in text[:60] or "maxmemory" in text:
        return RelayFull(
            f"the server at {place} has used up its memory; raise its maxmemory, or free some with fedq runs prune"
        )
    if "MISCONF" in text[:60]:
        return RelayReadOnly(f"the server at {place} cannot save its data and refuses writes: {text}")
    if "NOREPLICAS" in text[:60]:
        return RelayReadOnly(f"the server at {place} has too few replicas and refuses writes: {text}")
    if isinstance(error, ResponseError):
        return RelayError(f"the server at {place} refused a step: {text}")
    return RelayError(f"the server at {place} could not be used: {text or type(error).__name__}")


def patiently(
    attempt: Callable[[], T],
    *,
    on_wait: Callable[[FedqError, float], None],
    stop: Callable[[], bool] = lambda: False,
    wait: Callable[[float], None] = time.sleep,
) -> T:
    """Call ``attempt`` until the server is there, with a growing pause; ``on_wait`` hears of each.

    Only :class:`RelayUnavailable` is waited for; every other error, and an outage while ``stop()``, passes through.
    """
    pauses = Pauses()
    while True:
        try:
            return attempt()
        except RelayUnavailable as error:
            if stop():
                raise
            pause = pauses.next()
            on_wait(error, pause)
            wait(pause)
