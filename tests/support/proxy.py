"""A go-between that breaks connections in the middle of a reply."""

from __future__ import annotations

import contextlib
import random
import select
import socket
import socketserver
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

BUFFER = 1 << 16


class CuttingProxy:
    """Listens on the unix socket ``path`` and passes everything on to the one at ``upstream``.

    Each time the server answers, both sides are cut off with the probability ``chance``, when only a part of the answer
    has been passed on. The request was carried out; whoever sent it cannot know. ``cuts`` counts.
    """

    def __init__(self, path: Path, upstream: Path, *, chance: float, seed: int) -> None:
        self.path = path
        self.cuts = 0
        self._dice = random.Random(seed)
        self._chance = chance
        self._closing = threading.Event()
        proxy = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as server:
                    server.connect(str(upstream))
                    proxy._pass_on(self.request, server)

        class Server(socketserver.ThreadingUnixStreamServer):
            request_queue_size = 128

        self._server = Server(str(path), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="proxy")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()  # waits for the threads of the connections
        self._thread.join()

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        while not self._closing.is_set():
            for ready in select.select([client, server], [], [], 0.1)[0]:
                data = ready.recv(BUFFER)
                if not data:
                    return
                if ready is client:
                    server.sendall(data)
                elif self._dice.random() < self._chance:
                    self.cuts += 1
                    client.sendall(data[: len(data) // 2])
                    return
                else:
                    client.sendall(data)
