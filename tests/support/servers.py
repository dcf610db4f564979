"""Real servers for tests: start, crash, pause, fill and restart them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis

from fedq.relay.embedded import EmbeddedServer
from fedq.relay.serverprogram import Kind, find_server, server_programs


def server_kinds() -> list[Kind]:
    """The kinds of server found on this machine, the preferred one first."""
    return list(dict.fromkeys(program.kind for program in server_programs()))


class RealServer(EmbeddedServer):
    """A private server with what tests do to one.

    Further arguments as for :class:`EmbeddedServer`; by default it lives in a temporary directory, on a unix socket.
    """

    def __init__(
        self, directory: str | os.PathLike[str] | None = None, *, kind: Kind | None = None, **options: Any
    ) -> None:
        # DEBUG is wanted for loading and sleeping; both kinds allow it only where the configuration says so.
        settings = {"enable-debug-command": "local", **options.pop("settings", {})}
        super().__init__(directory, program=find_server(kind), settings=settings, **options)

    @property
    def kind(self) -> Kind:
        assert self.program is not None
        return self.program.kind

    def crash(self) -> None:
        """SIGKILL and start again on what the append-only file holds."""
        self.kill()
        self.start()

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nobody answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    @contextmanager
    def paused(self) -> Iterator[None]:
        self.pause()
        try:
            yield
        finally:
            self.resume()

    @contextmanager
    def configured(self, **settings: str | int) -> Iterator[None]:
        """CONFIG SET for the time of the block; ``_`` in a name stands for ``-``."""
        with self.client() as client:
            names = {name: name.replace("_", "-") for name in settings}
            before = {name: client.config_get(real)[real] for name, real in names.items()}
            for name, value in settings.items():
                client.config_set(names[name], value)
        try:
            yield
        finally:
            with self.client() as client:
                for name, value in before.items():
                    client.config_set(names[name], value)

    def keys(self, pattern: str = "*") -> list[str]:
        """All names of keys that match, sorted."""
        with self.client() as client:
            return sorted(key.decode(errors="backslashreplace") for key in client.scan_iter(pattern, count=1000))

    def clear(self) -> None:
        """Remove every key, every ACL user but the default one, and every other client."""
        with self.client() as client:
            client.flushall()
            client.script_flush()
            for user in client.acl_users():
                if user not in ("default", b"default"):
                    client.acl_deluser(user)

    def wait_for(self, description: str, pattern: str, *, timeout: float = 10.0) -> list[str]:
        """Wait until a key that matches is there."""
        from tests.support.waiting import wait_until

        return wait_until(lambda: self.keys(pattern), f"{description} (a key {pattern})", timeout=timeout)


def connections_refused() -> tuple[type[BaseException], ...]:
    """What a client may see while a server is away."""
    return (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError)
