"""Large arrays arrive as they were sent: by each way to a server, where it refuses, and where a connection breaks."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import urlsplit

import numpy as np
import pytest
import redis
from redis import exceptions

from fedq.apps.digest import digest_of
from fedq.relay import bulk, objects
from fedq.relay.connection import Relay
from fedq.relay.errors import RelayError, RelayFull, RelayUnavailable
from tests.support import RealServer

BLOBS = {
    digest_of(data): data
    for data in (
        np.random.default_rng(1).bytes(2 * objects.CHUNK + 12_345),
        np.random.default_rng(2).bytes(objects.CHUNK),
        b"\r\n$-1\r\n" * 20_000,
    )
}
SIZE = sum(map(len, BLOBS.values()))
Direction = Literal["to the server", "from the server"]


def there_and_back(relay: Relay) -> None:
    """Each array goes up and comes down the same."""
    assert objects.upload_bundle(relay, BLOBS) == SIZE
    assert objects.upload_bundle(relay, BLOBS) == 0
    got = objects.fetch_shared(relay, BLOBS)
    assert {digest: bytes(view) for digest, view in got.items()} == BLOBS
    assert relay.redis.ping()


def remove(relay: Relay) -> None:
    for digest in BLOBS:
        for name in relay.redis.scan_iter(f"{relay.keys.obj(digest)}*", count=1000):
            relay.redis.delete(name)


@pytest.fixture
def clean(relay: Relay) -> Iterator[Relay]:
    yield relay
    remove(relay)


class Between:
    """Listens on a port of loopback and passes everything on to a server's unix socket, with TLS on its own side if it
    has a ``context``. ``cut`` breaks the connection that is the first to pass so many bytes in a direction, once.
    """

    def __init__(self, url: str, context: ssl.SSLContext | None = None) -> None:
        self._upstream = urlsplit(url).path
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._threads: list[threading.Thread] = []
        self._open: list[socket.socket] = []
        self._cut: tuple[Direction, int] | None = None
        self.cuts = 0

    def cut(self, direction: Direction, after: int) -> None:
        self._cut = (direction, after)

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._close(*self._open)
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive()

    def _start(self, target: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, name="between")
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._upstream)
                if self._context is not None:
                    client = self._context.wrap_socket(client, server_side=True)
                self._open += [client, server]
                self._start(self._pass_on, client, server, "to the server")
                self._start(self._pass_on, server, client, "from the server")

    def _pass_on(self, source: socket.socket, target: socket.socket, direction: Direction) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if self._cut is not None and self._cut[0] == direction and passed + len(data) > self._cut[1]:
                    target.sendall(data[: self._cut[1] - passed])
                    self._cut = None
                    self.cuts += 1
                    break
                target.sendall(data)
                passed += len(data)
        self._close(source, target)

    @staticmethod
    def _close(*sockets: socket.socket) -> None:
        for each in sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


@pytest.fixture
def connected(clean: Relay) -> Iterator[Callable[..., Relay]]:
    """Relays over other addresses and with other settings of redis-py."""
    with contextlib.ExitStack() as stack:

        def connect(url: str = clean.url, **settings: Any) -> Relay:
            made = stack.enter_context(contextlib.closing(Relay(url)))
            made.redis.connection_pool.connection_kwargs.update(settings)
            return made

        yield connect


def parsers() -> Iterator[Any]:
    from redis._parsers import _HiredisParser, _RESP2Parser, _RESP3Parser

    for protocol, name, parser in ((2, "python", _RESP2Parser), (3, "python", _RESP3Parser)):
        yield pytest.param(protocol, parser, id=f"RESP{protocol}-{name}")
    for protocol in (2, 3):
        yield pytest.param(protocol, _HiredisParser, id=f"RESP{protocol}-hiredis")


@pytest.mark.parametrize(("protocol", "parser"), list(parsers()))
def test_whatever_protocol_and_parser_redis_py_has(
    protocol: int, parser: type, connected: Callable[..., Relay], gone_directly: list[bool]
) -> None:
    relay = connected(protocol=protocol, parser_class=parser)
    there_and_back(relay)
    assert gone_directly == [True, True]


@pytest.fixture
def gone_directly(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each transfer went straight between memory and socket."""
    noted: list[bool] = []

    def directly(client: redis.Redis, action: Callable[[bulk.Line], object]) -> bool:
        noted.append(bulk.directly(client, action))
        return noted[-1]

    monkeypatch.setattr(objects, "directly", directly)
    return noted


@pytest.mark.parametrize("lacks", ["_sock", "_parser", "send_packed_command"])
def test_without_what_is_known_of_redis_py_the_same_bytes_go_by_commands(
    lacks: str,
    clean: Relay,
    connected: Callable[..., Relay],
    gone_directly: list[bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = bulk._is_known

    class Changed:
        """A connection of a redis-py to come."""

        def __init__(self, connection: Any) -> None:
            self._connection = connection

        def __getattr__(self, name: str) -> Any:
            if name == lacks:
                raise AttributeError(name)
            return getattr(self._connection, name)

    monkeypatch.setattr(bulk, "_is_known", lambda connection: known(Changed(connection)))
    there_and_back(connected())
    assert gone_directly == [False, False]
    # What one way has stored the other finds.
    monkeypatch.undo()
    got = objects.fetch_shared(clean, BLOBS)
    assert {digest: bytes(view) for digest, view in got.items()} == BLOBS


def test_over_tls(clean: Relay, connected: Callable[..., Relay], tmp_path: Path, gone_directly: list[bool]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate(tmp_path))
    with Between(clean.url, context) as between:
        relay = connected(f"rediss://127.0.0.1:{between.port}?ssl_ca_certs={tmp_path / 'both.pem'}")
        there_and_back(relay)
        relay.close()
    assert gone_directly == [True, True]


@pytest.mark.parametrize("after", [10_000, objects.CHUNK + 500_000])
@pytest.mark.parametrize("direction", ["to the server", "from the server"])
def test_a_connection_that_breaks_half_way_is_made_again(
    direction: Direction, after: int, clean: Relay, connected: Callable[..., Relay]
) -> None:
    with Between(clean.url) as between:
        relay = connected(f"redis://127.0.0.1:{between.port}")
        relay.redis.ping()
        if direction == "from the server":
            objects.upload_bundle(clean, BLOBS)
            between.cut(direction, after)
        else:
            between.cut(direction, after)
            objects.upload_bundle(relay, BLOBS)
        got = objects.fetch_shared(relay, BLOBS)
        assert between.cuts == 1
        assert {digest: bytes(view) for digest, view in got.items()} == BLOBS
        relay.close()


def test_a_server_that_is_gone_is_told_and_nothing_is_left_of_the_try(
    clean: Relay, connected: Callable[..., Relay]
) -> None:
    with Between(clean.url) as between:
        relay = connected(f"redis://127.0.0.1:{between.port}")
        objects.upload_bundle(relay, BLOBS)
    with pytest.raises(RelayUnavailable):
        objects.fetch_shared(relay, BLOBS)


@pytest.mark.leaves_keys
def test_a_server_that_is_full_refuses_in_the_middle_and_the_next_answer_is_its_own(
    server: RealServer, clean: Relay
) -> None:
    used = int(clean.redis.info("memory")["used_memory"])  # type: ignore[index]
    # There is room for the first chunk and not for all.
    with server.configured(maxmemory=used + objects.CHUNK + 2_000_000, maxmemory_policy="noeviction"):
        with pytest.raises(RelayFull):
            objects._send(clean, list(BLOBS), BLOBS, clean.keys.obj, clean.keys.obj_chunk)
        for digest in BLOBS:
            assert clean.redis.get(clean.keys.obj(digest)) is None
        assert clean.redis.echo("hello") == b"hello"
    there_and_back(clean)


def test_an_answer_that_is_no_value_is_an_error_and_not_taken_for_one(clean: Relay) -> None:
    (digest, *_) = BLOBS
    clean.redis.rpush(clean.keys.obj(digest), "a list")
    with pytest.raises(RelayError, match="WRONGTYPE"):
        objects.fetch_shared(clean, [digest])
    with pytest.raises(exceptions.ConnectionError, match=r"answered '\*0' to a request for a value"):
        bulk.directly(clean.redis, lambda line: (line.send(*bulk.command("KEYS", "nothing")), line.read_value()))
    assert clean.redis.echo("hello") == b"hello"


def certificate(folder: Path) -> Path:
    """A key, and a certificate for this machine by itself, in one file."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = folder / "both.pem"
    path.write_bytes(private + made.public_bytes(pem))
    return path
