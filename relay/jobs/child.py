"""A child of a service: what it is to do, and what it has of the supervisor that starts it (:mod:`.supervisor`)."""

from __future__ import annotations

import contextlib
import json
import logging
import select
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fedq.apps.errors import FedqError

__all__ = ["FATAL", "ChildContext", "ChildSpec", "Fatal", "be"]

log = logging.getLogger("fedq.supervisor")

FATAL = 78
"""Exit status of a child without which the service makes no sense (EX_CONFIG of sysexits.h)."""


class Fatal(FedqError):
    """Raised by a child's target: end the whole service, with this message. Waiting or restarting would not help."""


class ChildContext:
    """What a child has of its supervisor.

    Attributes:
        name: the child's name.
        events: a descriptor that can be read when lines have arrived; see :meth:`receive`.
    """

    def __init__(self, name: str, end: socket.socket) -> None:
        self.name = name
        self._socket = end
        self._socket.setblocking(False)
        self._buffer = b""

    @property
    def events(self) -> int:
        """The descriptor to wait for."""
        return self._socket.fileno()

    def receive(self) -> list[dict[str, Any]]:
        """The lines that have arrived, without waiting: ``{"died": name, "pid": …, "status": …}``,
        ``{"started": name, "pid": …}``, and what other children have sent, with their name under ``from``."""
        with contextlib.suppress(BlockingIOError, InterruptedError, ConnectionError):
            while piece := self._socket.recv(65536):
                self._buffer += piece
        *lines, self._buffer = self._buffer.split(b"\n")
        return [json.loads(line) for line in lines if line]

    def send(self, to: str, line: Mapping[str, Any]) -> None:
        """Send a line to the child named ``to``. Lost if there is no such child, or if it does not read its lines."""
        self._write({"to": to, "line": dict(line)})

    def spare(self, pid: int) -> None:
        """Do not kill process ``pid``, a child of this one, as soon as this one dies: it has something left to do."""
        self._write({"spare": pid})

    def fatal(self, text: str) -> None:
        """Tell the supervisor why the service cannot go on (see :class:`Fatal`)."""
        self._write({"fatal": text})

    def close(self) -> None:
        """Let go of the supervisor: what processes forked from this child do."""
        self._socket.close()

    def _write(self, value: Mapping[str, Any]) -> None:
        data = json.dumps(value).encode() + b"\n"
        try:
            sent = self._socket.send(data)
            while sent < len(data):  # half a line would garble the next
                _writable(self._socket)
                sent += self._socket.send(data[sent:])
        except OSError:  # full, or the supervisor is gone, and with it soon this process
            pass


def _writable(end: socket.socket) -> None:
    poller = select.poll()
    poller.register(end, select.POLLOUT)
    poller.poll(1000)


@dataclass(frozen=True)
class ChildSpec:
    """A child to be.

    Attributes:
        name: unique within the service.
        target: called in the child; its return ends the child with status 0, an exception with 1.
        restart: whether a new one is started when it ends, however it ends. If not, and it fails, it stays away.
        events: whether it wants to hear of the others' starts and deaths.
        last: whether it gets SIGTERM only when all children without ``last`` have ended.
    """

    name: str
    target: Callable[[ChildContext], None]
    restart: bool = True
    events: bool = False
    last: bool = False


def be(spec: ChildSpec, context: ChildContext) -> int:
    """Run a child's target; the exit status."""
    try:
        spec.target(context)
    except Fatal as error:
        context.fatal(str(error))
        return FATAL
    except SystemExit as error:
        if error.code is None:
            return 0
        return error.code if isinstance(error.code, int) else 1
    except KeyboardInterrupt:
        return 130
    except BaseException:
        log.exception("%s has failed", spec.name)
        return 1
    return 0
