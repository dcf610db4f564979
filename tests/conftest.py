"""Options, marks, servers, and the checks that no test leaves anything behind."""

from __future__ import annotations

import fnmatch
import gc
import logging
import os
import random
import shutil
import signal
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest
import redis as redis_py

from tests.support import processes
from tests.support.servers import RealServer, server_kinds
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from fedq.relay.connection import Relay

ONLY_WITH_ALL = ("browser", "peer", "fuzz", "servers", "slow", "chaos")
KEYS_OF_OURS = ("fedq:*", "rq:*", "{rq}:*")
# RQ never forgets the name of a queue.
KEYS_THAT_STAY = ("rq:queues", "{rq}:queues")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--all", action="store_true", help="run everything: " + ", ".join(ONLY_WITH_ALL) + ", and each kind of server"
    )

    parser.addoption(
        "--mutations", action="store_true", help="also take each check out of each step, which takes minutes"
    )


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("--all"):
        hypothesis.settings.register_profile("brief", max_examples=25)
        hypothesis.settings.load_profile("brief")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # Started in the background by a shell. What is started here is to hear Ctrl-C all the same.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    mark = uuid.uuid4().hex
    processes.set_mark(mark)
    config.stash[MARK] = mark
    # The developer's own server is none of the tests' business.
    for name in [name for name in os.environ if name.startswith("FEDQ_") and name != processes.MARK] + ["REDIS_URL"]:
        os.environ.pop(name, None)
    # Drawn once for all processes of the session, which collect the same tests.
    os.environ.setdefault("CHAOS_SEED", str(random.SystemRandom().randrange(10, 1_000_000)))
    # One place for temporary files, so that what is left there is seen; a short name, for the sake of unix sockets.
    place = tempfile.mkdtemp(prefix="fq-")
    config.stash[PLACE] = Path(place)
    os.environ["TMPDIR"] = tempfile.tempdir = place


def pytest_report_header(config: pytest.Config) -> str:
    return f"chaos: the fresh seed is {os.environ['CHAOS_SEED']} (CHAOS_SEED repeats it)"


MARK = pytest.StashKey[str]()
PLACE = pytest.StashKey[Path]()
SERVERS: dict[str, RealServer] = {}


def pytest_unconfigure(config: pytest.Config) -> None:
    if (place := config.stash.get(PLACE, None)) is not None:
        shutil.rmtree(place, ignore_errors=True)
        tempfile.tempdir = None


LONG = (
    "tests/flower_apps/test_flower_apps.py",
    "tests/test_bench.py",
    "tests/relay/test_model.py",
    "tests/test_readme.py",
    "tests/test_examples.py",
    "tests/test_chaos.py",
    "tests/apps/strategies/test_flower_peer.py",
    "tests/cli/test_demo.py",
)
"""Files that take longest, in this order: begun last, they would keep one process busy when all others are done."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_to_all = () if config.getoption("--all") else ONLY_WITH_ALL
    if not config.getoption("--mutations"):
        left_to_all = (*left_to_all, "mutations")
    left_out = [
        item for item in items if any(item.get_closest_marker(name) for name in left_to_all) or doubly_uncommon(item)
    ]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]
    rank = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(item.nodeid.partition("::")[0], len(LONG)))


def doubly_uncommon(item: pytest.Item) -> bool:
    """Whether it is about another isolation than the default on another server than the preferred: each of the two is
    tested, with the other as usual."""
    params = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    isolations = {params.get(name, "fork") for name in ("isolation", "usual_isolation")}
    return isolations != {"fork"} and params.get("server_kind") not in (None, *server_kinds()[:1])


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests that use ``server`` run on the preferred kind of server; with --all on each kind that is there."""
    if "server_kind" in metafunc.fixturenames:
        kinds = server_kinds()
        if not metafunc.config.getoption("--all") or metafunc.definition.get_closest_marker("one_server"):
            kinds = kinds[:1]
        metafunc.parametrize("server_kind", kinds or [None], indirect=True, scope="session", ids=str)


# -- servers -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def server_kind(request: pytest.FixtureRequest) -> str:
    """The kind of server: "redis" or "valkey"."""
    kind: str = request.param
    return kind


@pytest.fixture(scope="session")
def session_server(server_kind: str) -> Iterator[RealServer]:
    """One real server for all tests of the session. Use ``server``, which is clean."""
    with RealServer(kind=server_kind or None) as server:  # type: ignore[arg-type]
        SERVERS[server_kind] = server
        yield server
    del SERVERS[server_kind]


@pytest.fixture
def server(session_server: RealServer, request: pytest.FixtureRequest) -> Iterator[RealServer]:
    """The session's server, empty. After the test no key of ours may be left that does not expire by itself.

    ``@pytest.mark.leaves_keys`` allows any, ``@pytest.mark.leaves_keys("fedq:{0}:run:*", …)`` those that match.
    A test that kills or pauses the server takes ``own_server``.
    """
    session_server.clear()
    yield session_server
    marks = list(request.node.iter_markers("leaves_keys"))
    left = [] if any(not mark.args for mark in marks) else lasting_keys(session_server)
    allowed = [*KEYS_THAT_STAY, *(pattern for mark in marks for pattern in mark.args)]
    session_server.clear()
    left = [key for key in left if not any(fnmatch.fnmatchcase(key, pattern) for pattern in allowed)]
    assert not left, f"the test left {len(left)} keys behind: {', '.join(left[:20])}"


@pytest.fixture
def own_server(server_kind: str) -> Iterator[RealServer]:
    """A real server for this test alone, to kill, pause, fill or reconfigure."""
    with RealServer(kind=server_kind or None) as server:  # type: ignore[arg-type]
        yield server


@pytest.fixture
def redis(server: RealServer) -> Iterator[redis_py.Redis]:
    """A client of ``server``; answers are bytes."""
    with server.client() as client:
        yield client


@pytest.fixture
def relay(server: RealServer) -> Iterator[Relay]:
    """The relay's handle on ``server``."""
    from fedq.relay.connection import Relay

    with Relay.connect(server.url) as relay:
        yield relay


def lasting_keys(server: RealServer) -> list[str]:
    """Keys of ours that will not go away by themselves."""
    with server.client() as client:
        names = [key for pattern in KEYS_OF_OURS for key in client.scan_iter(pattern, count=1000)]
        with client.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.pttl(name)
            lives = pipe.execute()
    return sorted(name.decode(errors="backslashreplace") for name, life in zip(names, lives, strict=True) if life == -1)


# -- nothing is left behind --------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def no_process_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Ends and reports the processes that a test left, orphans too; ``@pytest.mark.leaves_processes`` allows them."""
    mark = request.config.stash[MARK]
    before = {process.pid for process in processes.stray_processes(mark)}
    yield
    if request.node.get_closest_marker("leaves_processes"):
        return

    def left() -> list[str]:
        known = before | {server.pid for server in SERVERS.values() if server.running}
        return [processes.described(process) for process in processes.stray_processes(mark, known)]

    try:
        wait_until(lambda: not left(), lambda: "processes that the test left: " + "; ".join(left()), timeout=3.0)
    except AssertionError:
        known = before | {server.pid for server in SERVERS.values() if server.running}
        processes.end(processes.stray_processes(mark, known))
        raise


@pytest.fixture(autouse=True)
def no_file_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a test makes in the folder of temporary files, it removes."""
    place = request.config.stash[PLACE]
    before = set(os.listdir(place))
    yield
    servers = {server.directory.name for server in SERVERS.values() if server.directory is not None}
    # pytest's own folder, and those of libraries that keep theirs for the process, are not of our making.
    left = {name for name in os.listdir(place) if name.startswith("fedq")} - before - servers
    for name in left:
        shutil.rmtree(place / name, ignore_errors=True)
    assert not left, f"the test left temporary files behind: {', '.join(sorted(left))}"


@pytest.fixture(autouse=True)
def no_socket_is_left(no_process_is_left: None, no_file_is_left: None) -> Iterator[None]:
    """Sockets that a test opened are closed, by it or with the objects that held them."""
    before = len(open_sockets())
    yield
    if len(open_sockets()) > before:
        gc.collect()
    # The session's server may have been started within the test; its clients are closed.
    left = len(open_sockets()) - before
    assert left <= 0, f"the test left {left} sockets open; close clients, pools and servers"


@pytest.fixture(autouse=True)
def logging_is_as_before() -> Iterator[None]:
    """Handlers and levels of the root logger and of ours, which services set up, do not last beyond a test."""
    loggers = [logging.getLogger(name) for name in (None, "fedq", "rq", "rq.worker")]
    before = [(logger, logger.level, list(logger.handlers), logger.propagate) for logger in loggers]
    yield
    for logger, level, handlers, propagate in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers
        logger.propagate = propagate


def open_sockets() -> list[str]:
    """The sockets that this process holds, by inode; empty where the system does not tell."""
    found = []
    try:
        for name in os.listdir("/proc/self/fd"):
            try:
                target = os.readlink(f"/proc/self/fd/{name}")
            except OSError:
                continue
            if target.startswith("socket:"):
                found.append(target)
    except FileNotFoundError:
        pass
    return found
