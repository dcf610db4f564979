"""The private server: found or clearly missed, private, durable, alone in its directory, gone with its owner."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis as redis_py
from redis.backoff import NoBackoff
from redis.retry import Retry

from fedq.relay import embedded, serverprogram
from fedq.relay.embedded import DirectoryInUse, EmbeddedServer
from fedq.relay.serverprogram import EmbeddedServerError, ServerProgramMissing, find_server
from tests.support import RealServer, gone, wait_until


def test_data_written_before_a_stop_is_there_after_the_next_start(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path / "here") as server, server.client() as client:
        client.set("kept", "yes")
    with EmbeddedServer(tmp_path / "here") as server, server.client() as client:
        assert client.get("kept") == b"yes"


def test_with_fsync_always_a_killed_server_comes_back_with_everything_acknowledged(tmp_path: Path) -> None:
    with RealServer(tmp_path, fsync="always") as server:
        with server.client() as client:
            for number in range(200):
                client.rpush("numbers", number)
        server.crash()
        with server.client() as client:
            assert client.llen("numbers") == 200


@pytest.mark.parametrize("listen", ["unix", "loopback"])
def test_a_restart_keeps_the_address_and_the_data(listen: str, tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path, listen=listen) as server:  # type: ignore[arg-type]
        before = server.url
        with server.client() as client:
            client.set("kept", "yes")
        server.restart()
        assert server.url == before
        with server.client() as client:
            assert client.get("kept") == b"yes"
    with EmbeddedServer(tmp_path, listen=listen) as server:  # type: ignore[arg-type]
        assert server.url == before


def test_a_temporary_server_survives_its_restart_and_leaves_no_directory(tmp_path: Path) -> None:
    with EmbeddedServer() as server:
        place = server.directory
        assert place is not None
        with server.client() as client:
            client.set("kept", "yes")
        server.restart()
        with server.client() as client:
            assert client.get("kept") == b"yes"
    assert not place.exists()


def test_it_appends_to_a_file_and_never_evicts() -> None:
    with EmbeddedServer(maxmemory=64 << 20) as server, server.client() as client:
        settings = client.config_get("append*", "maxmemory*", "save")
    assert settings["appendonly"] == "yes"
    assert settings["appendfsync"] == "everysec"
    assert settings["maxmemory-policy"] == "noeviction"
    assert settings["maxmemory"] == str(64 << 20)
    assert settings["save"] == ""


def test_the_unix_socket_and_the_directory_open_for_this_user_only(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path / "here"):
        assert stat.S_IMODE((tmp_path / "here" / "redis.sock").stat().st_mode) == 0o700
        assert stat.S_IMODE((tmp_path / "here" / "server.conf").stat().st_mode) == 0o600
        assert stat.S_IMODE((tmp_path / "here" / "url").stat().st_mode) == 0o600
        assert stat.S_IMODE((tmp_path / "here" / "data").stat().st_mode) == 0o700
    assert not (tmp_path / "here" / "redis.sock").exists()


def test_on_loopback_it_wants_its_password_and_shows_it_to_nobody(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path, listen="loopback") as server:
        parts = address_of(server.url)
        assert parts["host"] == "127.0.0.1"
        with redis_py.Redis(host="127.0.0.1", port=parts["port"], retry=Retry(NoBackoff(), 0)) as stranger:
            with pytest.raises(redis_py.exceptions.AuthenticationError):
                stranger.ping()
        shown = " ".join(psutil.Process(server.pid).cmdline())
        assert parts["password"] not in shown
        assert len(parts["password"]) >= 32


def test_on_loopback_a_port_that_is_taken_meanwhile_is_replaced(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path, listen="loopback") as server:
        before = address_of(server.url)
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", before["port"]))
        other.listen()
        with EmbeddedServer(tmp_path, listen="loopback") as server:
            after = address_of(server.url)
            assert after["port"] != before["port"]
            assert after["password"] == before["password"]


def test_a_port_asked_for_that_is_taken_is_an_error_with_the_servers_words(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        server = EmbeddedServer(tmp_path, listen="loopback", port=other.getsockname()[1])
        with pytest.raises(EmbeddedServerError, match="ddress already in use"):
            server.start()
    assert not server.running


def test_a_directory_with_a_long_name_gets_its_socket_elsewhere_at_the_same_address_each_time(tmp_path: Path) -> None:
    place = tmp_path / ("long" * 20) / ("longer" * 20)
    with EmbeddedServer(place) as server, server.client() as client:
        before = server.url
        client.set("kept", "yes")
        path = Path(address_of(server.url)["path"])
        assert len(os.fsencode(path)) <= embedded.LONGEST_SOCKET_PATH
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert not path.parent.exists()
    with EmbeddedServer(place) as server, server.client() as client:
        assert server.url == before
        assert client.get("kept") == b"yes"


def test_a_short_place_for_the_socket_that_others_may_enter_is_refused(tmp_path: Path) -> None:
    place = tmp_path / ("long" * 40)
    with EmbeddedServer(place) as server:
        short = Path(address_of(server.url)["path"]).parent
    short.mkdir(mode=0o777)
    short.chmod(0o777)
    try:
        with pytest.raises(EmbeddedServerError, match="not a folder of this user alone"):
            EmbeddedServer(place).start()
    finally:
        short.rmdir()


def test_directories_with_blanks_quotes_and_umlauts_work(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path / 'the "größte" of 100 % #1') as server, server.client() as client:
        assert client.ping()


@pytest.mark.parametrize("listen", ["unix", "loopback"])
def test_two_servers_never_share_a_directory(listen: Any, tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path, listen=listen) as server:
        with pytest.raises(DirectoryInUse, match=r"another private server works in .*; stop it"):
            EmbeddedServer(tmp_path, listen=listen).start()
        assert server.running
        with server.client() as client:
            assert client.ping()


@pytest.mark.parametrize("listen", ["unix", "loopback"])
def test_a_server_that_finds_its_directory_in_use_changes_nothing_there(listen: Any, tmp_path: Path) -> None:
    def files() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}

    with EmbeddedServer(tmp_path, listen=listen) as server:
        before = files()
        with pytest.raises(DirectoryInUse):
            with EmbeddedServer(tmp_path, listen=listen, maxmemory=50_000_000):
                pass
        assert files() == before
        # By a new connection, which needs the socket.
        with server.client() as client:
            assert client.ping()


def test_a_stopped_server_takes_nothing_from_the_next_one_in_its_directory(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as first:
        first.stop()
        with EmbeddedServer(tmp_path) as second:
            first.__exit__(None, None, None)
            with second.client() as client:
                assert client.ping()


def test_a_directory_that_cannot_be_made_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EmbeddedServerError, match=f"cannot keep the private server's data in {tmp_path}/file/here"):
        EmbeddedServer(tmp_path / "file" / "here").start()


def test_a_server_that_ends_at_once_is_an_error_with_its_last_words() -> None:
    with pytest.raises(EmbeddedServerError, match=r"(?s)ended at once with code 1.*no-such-directive"):
        with EmbeddedServer(settings={"no-such-directive": "1"}):
            pass


def test_a_broken_append_only_file_is_an_error_and_is_left_as_it_was(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path, fsync="always") as server, server.client() as client:
        for number in range(100):
            client.rpush("numbers", number)
    (written,) = (tmp_path / "data").glob("**/*.incr.aof")
    content = bytearray(written.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 40] = b"?" * 40
    written.write_bytes(content)
    with pytest.raises(EmbeddedServerError, match="Bad file format"):
        EmbeddedServer(tmp_path).start()
    assert written.read_bytes() == content


def test_while_it_loads_its_data_the_start_waits_as_long_as_it_takes(tmp_path: Path) -> None:
    with RealServer(tmp_path) as server, server.client() as client:
        with client.pipeline(transaction=False) as pipe:
            for number in range(12_000):
                pipe.rpush("numbers", number)
            pipe.execute()
    # 250 µs for each command, or more: at least three seconds of loading, with a sign of life every thousand commands.
    slow = {"key-load-delay": "250", "aof-use-rdb-preamble": "no"}
    with RealServer(tmp_path, settings=slow, start_timeout=2.5) as server, server.client() as client:
        assert client.llen("numbers") == 12_000


def test_without_any_server_program_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(serverprogram, "_packaged_program", lambda: None)
    with pytest.raises(ServerProgramMissing, match=r"apt install redis-server.*fedq\[embedded\].*FEDQ_REDIS_URL"):
        EmbeddedServer().start()


def test_a_server_program_that_is_too_old_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "redis-server"
    old.write_text("#!/bin/sh\necho 'Redis server v=6.0.16 sha=00000000:0 malloc=jemalloc-5.2.1 bits=64 build=1'\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert all(program.path != old for program in serverprogram.server_programs())
    monkeypatch.setattr(serverprogram, "_packaged_program", lambda: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServerProgramMissing, match=r"redis-server is older than 7\.0"):
        find_server()


def test_a_program_on_the_path_goes_before_the_packaged_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = tmp_path / "valkey-server"
    mine.write_text("#!/bin/sh\necho 'Valkey server v=9.0.1 sha=00000000:0 malloc=libc bits=64 build=1'\n")
    mine.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_server("valkey").path == mine
    assert find_server("valkey").version == (9, 0, 1)


def address_of(url: str) -> dict[str, Any]:
    """Host, port and password, or the socket's path, as redis-py reads them from ``url``."""
    parts: dict[str, Any] = redis_py.connection.parse_url(url)  # type: ignore[no-untyped-call]
    return parts


OWNER = """
import sys, threading, time
from fedq.relay.embedded import EmbeddedServer
server = EmbeddedServer(sys.argv[1])
if sys.argv[2] == "main":
    server.start()
else:
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
print(server.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("thread", ["main", "other"])
def test_the_server_dies_with_a_killed_owner_and_its_directory_is_free_again(thread: str, tmp_path: Path) -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path), thread], stdout=subprocess.PIPE, text=True)
    with owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        assert not gone(pid)
        with redis_py.Redis.from_url((tmp_path / "url").read_text().strip()) as client:
            client.set("kept", "yes")
        owner.kill()
    wait_until(lambda: gone(pid), f"the server {pid} has ended after its owner was killed")
    with EmbeddedServer(tmp_path) as server, server.client() as client:
        assert client.get("kept") == b"yes"


def test_the_end_of_the_thread_that_started_it_does_not_end_the_server() -> None:
    server = EmbeddedServer()
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
    with server, server.client() as client:
        assert client.ping()


def test_a_ctrl_c_in_the_terminal_does_not_reach_the_server(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as server:
        assert os.getpgid(server.pid) != os.getpgid(0)


def test_a_forked_child_cannot_stop_its_parents_server() -> None:
    with EmbeddedServer() as server:
        child = os.fork()
        if child == 0:
            try:
                server.__exit__(None, None, None)
                server.kill()
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        assert server.running
        with server.client() as client:
            assert client.ping()


def test_a_paused_server_is_stopped_all_the_same(tmp_path: Path) -> None:
    with RealServer(tmp_path) as server:
        pid = server.pid
        server.pause()
    assert gone(pid)


def test_a_server_that_does_not_end_within_the_grace_time_is_killed(tmp_path: Path) -> None:
    server = RealServer(tmp_path, stop_grace=0.2)
    with server:
        pid = server.pid
        with server.client() as client:
            # Within a command no signal is served.
            raw = client.connection_pool.get_connection()
            raw.send_command("DEBUG", "SLEEP", "30")
            wait_until(lambda: psutil.Process(pid).num_threads() > 0, "the server runs")
            server.stop()
            raw.disconnect()
    assert gone(pid)


def test_stop_and_start_may_be_repeated() -> None:
    server = EmbeddedServer()
    server.stop()
    server.start()
    pid = server.pid
    assert server.start().pid == pid
    server.stop()
    server.stop()
    assert gone(pid)
    with pytest.raises(EmbeddedServerError, match="not started"):
        _ = server.pid


def test_a_stop_is_a_clean_one(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as server:
        pass
    assert "bye bye" in server.log()


def test_impossible_wishes_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match="loopback"):
        EmbeddedServer(port=6379)
    with pytest.raises(ValueError, match="everysec"):
        EmbeddedServer(fsync="no")  # type: ignore[arg-type]
    with pytest.raises(EmbeddedServerError, match="start it first"):
        _ = EmbeddedServer().url
