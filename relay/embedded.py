"""A private Redis-compatible server for those who have none.

It keeps its data in an append-only file, evicts nothing, listens on a unix socket or on loopback with a password, and
ends with the process that started it. Which program it is: fedq.relay.serverprogram.

FedqError
 └─ RelayError
     └─ EmbeddedServerError       it cannot be started, or did not stay up
         ├─ ServerProgramMissing  no server program on this machine
         └─ DirectoryInUse        another server works in that directory
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self
from urllib.parse import quote, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from fedq.relay.serverprogram import EmbeddedServerError, ServerProgram, find_server

LONGEST_SOCKET_PATH = 103
"""Bytes. ``sun_path`` holds 108 with the closing zero on Linux, 104 on macOS."""

REWRITE_FROM = "256mb"
"""Size from which on the append-only file is rewritten when it has doubled: some seconds' reading at a start."""

Fsync = Literal["always", "everysec"]

# Replaces itself by the server, after asking the kernel for a signal at the parent's death (PR_SET_PDEATHSIG is 1).
# A program rather than a preexec_fn, since a fork in a process with threads must not run Python code.
_LAUNCH = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""

# Reads until the writing end of the pipe closes, which the kernel does at the death of whoever holds it.
_WATCH = 'read -r _; kill -TERM "$0" 2>/dev/null'


class DirectoryInUse(EmbeddedServerError):
    """Another private server works in the directory."""


class EmbeddedServer:
    """A private server, started by :meth:`start` or by ``with``.

    Guarantees. Data written before a clean :meth:`stop` is there after the next start on the same directory; after a
    crash all that was acknowledged (``fsync="always"``) or all but about the last second (``"everysec"``). Two servers
    never work in one directory. The server ends when the process that started it ends, however that happens, and does
    not hear a Ctrl-C in the terminal, so that its users can end first. In a forked child this object does nothing at
    :meth:`stop`.

    Args:
        directory: where data, configuration and log live, made if missing, for this user only. None: a temporary one,
            removed by :meth:`stop`.
        listen: "unix" (a socket that only this user can open) or "loopback" (127.0.0.1 and a random password, both
            the same after a restart on the same directory where the port is still free).
        port: for "loopback": this port instead of a free one.
        fsync: when acknowledged writes reach the disk.
        maxmemory: limit in bytes; 0: none.
        program: the server program; None: :func:`find_server`.
        settings: further directives of the server's configuration file.
        start_timeout: seconds until a server that says nothing is given up. Loading a large file does not count.
        stop_grace: seconds that a clean stop may take before the server is killed.

    Raises:
        DirectoryInUse, ServerProgramMissing, EmbeddedServerError: by :meth:`start`.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str] | None = None,
        *,
        listen: Literal["unix", "loopback"] = "unix",
        port: int | None = None,
        fsync: Fsync = "everysec",
        maxmemory: int = 0,
        program: ServerProgram | None = None,
        settings: Mapping[str, str] | None = None,
        start_timeout: float = 20.0,
        stop_grace: float = 20.0,
    ) -> None:
        if port is not None and listen != "loopback":
            raise ValueError('a port needs listen="loopback"')
        if fsync not in ("always", "everysec"):
            raise ValueError(f'fsync is "always" or "everysec", not {fsync!r}')
        self.directory: Path | None = Path(directory).expanduser().absolute() if directory is not None else None
        self.program = program
        self.fsync: Fsync = fsync
        self._temporary = directory is None
        self._listen = listen
        self._wanted_port = port
        self._maxmemory = maxmemory
        self._settings = dict(settings or {})
        self._start_timeout = start_timeout
        self._stop_grace = stop_grace
        self._process: subprocess.Popen[bytes] | None = None
        self._watcher: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._url = ""

    # -- what it is ----------------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """The address for redis-py and for ``FEDQ_REDIS_URL``; holds the password where there is one."""
        if not self._url:
            raise EmbeddedServerError("the private server has no address yet: start it first")
        return self._url

    @property
    def pid(self) -> int:
        """The server's process id; after :meth:`start`."""
        if self._process is None:
            raise EmbeddedServerError("the private server is not started")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the server's process lives. Ask in the process that started it."""
        return self._process is not None and self._process.poll() is None

    @property
    def end(self) -> str | None:
        """How the server's process ended by itself, in words; None while it runs."""
        code = self._process.poll() if self._process is not None else None
        if code is None:
            return None
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exited with status {code}"

    def client(self) -> redis.Redis:
        """A new client; the caller closes it."""
        return redis.Redis.from_url(self.url)

    def log(self, lines: int = 20) -> str:
        """The last lines of the server's log."""
        if self.directory is None:
            return ""
        try:
            with open(self.directory / "server.log", "rb") as file:
                file.seek(0, os.SEEK_END)
                file.seek(max(0, file.tell() - 200 * lines))
                return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""

    # -- life ----------------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Start the server and wait until it answers, its data loaded. Does nothing when it runs."""
        if self.running:
            return self
        if self.program is None:
            self.program = find_server()
        self._prepare_directory()
        kept = self._kept_address()
        tries = 1 if self._listen == "unix" or self._wanted_port is not None else 5
        for attempt in range(tries):
            port, password = 0, ""
            if self._listen == "loopback":
                # The kept port first; it may be somebody else's by now.
                port = self._wanted_port or (kept[0] if attempt == 0 and kept else _free_port())
                password = kept[1] if kept else secrets.token_urlsafe(24)
            with self._locked_directory() as lock:
                self._write_configuration(port, password)
                self._launch(lock)
            try:
                self._wait_until_ready()
            except EmbeddedServerError:
                self.kill()
                if attempt + 1 == tries or not self._port_was_taken():
                    raise
            except BaseException:
                self.kill()
                raise
            else:
                break
        return self

    def stop(self) -> None:
        """End the server cleanly, its data on disk; kill it after the grace time. Idempotent."""
        if self._process is not None and self._owner == os.getpid():
            # SIGTERM is what SHUTDOWN does, and works without a connection, also while loading.
            if self._process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    self._process.send_signal(signal.SIGTERM)
                    # A paused server takes no SIGTERM.
                    self._process.send_signal(signal.SIGCONT)
            try:
                self._process.wait(self._stop_grace)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._reap()
            self._remove_traces()

    def kill(self) -> None:
        """End the server with SIGKILL, as a crash would. Its files stay; :meth:`start` starts it again on them."""
        if self._process is not None and self._owner == os.getpid():
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            self._process.wait()
            self._reap()

    def revive(self) -> bool:
        """Launch the server again, at the same address and on the same data, if it has ended by itself.

        Does not wait until it answers, which may take a while with much data. Whether it had ended.

        Raises:
            DirectoryInUse: what the server forked has not ended yet; try again. EmbeddedServerError: no start is
                possible.
        """
        if self._owner != os.getpid() or self.running:
            return False
        self._reap()
        with self._locked_directory() as lock:
            self._launch(lock)
        return True

    def restart(self) -> None:
        """Stop cleanly and start again at the same address, with the same data."""
        temporary, self._temporary = self._temporary, False
        try:
            self.stop()
        finally:
            self._temporary = temporary
        self.start()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self._remove_traces()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._remove_traces()

    # -- steps of start ------------------------------------------------------------------------------------------------

    def _prepare_directory(self) -> None:
        if self.directory is None:
            self.directory = Path(tempfile.mkdtemp(prefix="fedq-server-"))
        try:
            (self.directory / "data").mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise EmbeddedServerError(
                f"cannot keep the private server's data in {self.directory}: {error.strerror or error}; "
                "name a directory that you can write to"
            ) from error

    def _kept_address(self) -> tuple[int, str] | None:
        """Port and password of the last start on this directory, where it listened on loopback."""
        assert self.directory is not None
        try:
            parts = urlsplit((self.directory / "url").read_text().strip())
            return (parts.port, parts.password) if parts.port and parts.password else None
        except (OSError, ValueError):
            return None

    def _socket_path(self) -> Path:
        """In the directory, or, where that is too long for a socket, in a short one that is the same at each start."""
        assert self.directory is not None
        path = self.directory / "redis.sock"
        if len(os.fsencode(path)) <= LONGEST_SOCKET_PATH:
            return path
        name = f"fedq-{os.getuid()}-{hashlib.sha256(os.fsencode(self.directory)).hexdigest()[:16]}"
        place = Path(tempfile.gettempdir()) / name
        if len(os.fsencode(place / "redis.sock")) > LONGEST_SOCKET_PATH:
            place = Path("/tmp") / name
        with contextlib.suppress(FileExistsError):
            place.mkdir(mode=0o700)
        state = place.lstat()
        # In a folder that all may write to, somebody else may have been there first.
        if place.is_symlink() or state.st_uid != os.getuid() or state.st_mode & 0o077:
            raise EmbeddedServerError(
                f"{self.directory} is too long for a unix socket, and {place} is not a folder of this user alone; "
                "name a shorter directory"
            )
        return place / "redis.sock"

    def _write_configuration(self, port: int, password: str) -> None:
        assert self.directory is not None
        directives: dict[str, str] = {
            "bind": "127.0.0.1",
            "port": str(port),
            "protected-mode": "yes",
            "daemonize": "no",
            "supervised": "no",
            "dir": str(self.directory / "data"),
            "logfile": str(self.directory / "server.log"),
            "always-show-logo": "no",
            "appendonly": "yes",
            "appendfsync": self.fsync,
            "no-appendfsync-on-rewrite": "no",
            "aof-load-truncated": "yes",
            # Weights do not compress, and each attempt costs more than all else that the server does with them. A file
            # that is rewritten whenever a few models have passed through costs most of the rest.
            "rdbcompression": "no",
            "auto-aof-rewrite-min-size": REWRITE_FROM,
            "save": "",
            "maxmemory": str(self._maxmemory),
            "maxmemory-policy": "noeviction",
        }
        if self._listen == "unix":
            path = self._socket_path()
            directives |= {"unixsocket": str(path), "unixsocketperm": "700"}
            self._url = f"unix://{quote(str(path))}"
        else:
            directives["requirepass"] = password
            self._url = f"redis://:{quote(password, safe='')}@127.0.0.1:{port}/0"
        directives |= self._settings
        text = "".join(f"{name} {_quoted(value)}\n" for name, value in directives.items())
        _write_private(self.directory / "server.conf", text)

    def _launch(self, lock: int) -> None:
        assert self.directory is not None
        assert self.program is not None
        try:
            command: Sequence[str] = [str(self.program.path), str(self.directory / "server.conf")]
            # The kernel's signal comes at the death of the starting *thread*: only the main one lives long enough.
            by_kernel = sys.platform == "linux" and threading.current_thread() is threading.main_thread()
            if by_kernel:
                command = [sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid()), *command]
            with open(self.directory / "server.log", "ab") as log:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self.directory,
                    # The server itself holds the lock: while it lives, and however this process ends.
                    pass_fds=(lock,),
                    start_new_session=True,
                    env={**os.environ, "LC_ALL": "C"},
                )
            self._owner = os.getpid()
            if not by_kernel:
                self._watcher = subprocess.Popen(
                    ["/bin/sh", "-c", _WATCH, str(self._process.pid)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
        except OSError as error:
            raise EmbeddedServerError(f"cannot start {self.program.path}: {error.strerror or error}") from error

    @contextlib.contextmanager
    def _locked_directory(self, patience: float = 2.0) -> Iterator[int]:
        """The directory's lock, for the block and for the server that it is passed on to. Waits for a server that is
        just shutting down; nothing in the directory may be changed without the lock."""
        assert self.directory is not None
        lock = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        give_up = time.monotonic() + patience
        try:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > give_up:
                        raise DirectoryInUse(
                            f"another private server works in {self.directory}; stop it, name another directory, or "
                            "use that server: its address is in the file url there"
                        ) from None
                    time.sleep(0.02)
            yield lock
        finally:
            os.close(lock)

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        assert self.directory is not None
        give_up = time.monotonic() + self._start_timeout
        pause = 0.002
        while True:
            if self._process.poll() is not None:
                raise EmbeddedServerError(
                    f"{self.program} ended at once with code {self._process.returncode}; its last words:\n{self.log(8)}"
                )
            # No retries and no pool that outlives the question.
            client = redis.Redis.from_url(self._url, retry=Retry(NoBackoff(), 0), socket_timeout=1.0)
            try:
                # Not refused while it loads its data.
                said = client.info()
                if said.get("process_id") == self._process.pid:
                    if not said.get("loading"):
                        break
                    give_up = time.monotonic() + self._start_timeout
            except redis.exceptions.BusyLoadingError:
                give_up = time.monotonic() + self._start_timeout
            except redis.exceptions.RedisError:
                pass
            finally:
                client.close()
            if time.monotonic() > give_up:
                raise EmbeddedServerError(
                    f"{self.program} did not answer within {self._start_timeout:g} s; its last words:\n{self.log(8)}"
                )
            time.sleep(pause)
            pause = min(pause * 1.5, 0.1)
        _write_private(self.directory / "url", self._url + "\n")

    def _port_was_taken(self) -> bool:
        return self._listen == "loopback" and "ddress already in use" in self.log(8)

    # -- steps of stop -------------------------------------------------------------------------------------------------

    def _reap(self) -> None:
        if self._watcher is not None:
            watcher, self._watcher = self._watcher, None
            # Its signal must not come when the number may already be another process's.
            watcher.kill()
            watcher.communicate()
        self._process = None

    def _remove_traces(self) -> None:
        if self.directory is None or self.running or self._owner not in (0, os.getpid()):
            return
        if self._listen == "unix" and self._url:
            path = self._socket_path()
            # Where somebody else has the lock, a server works here: the socket is that one's.
            with contextlib.suppress(DirectoryInUse, FileNotFoundError), self._locked_directory(patience=0.2):
                path.unlink(missing_ok=True)
                if path.parent != self.directory:
                    with contextlib.suppress(OSError):
                        path.parent.rmdir()
        if self._temporary:
            shutil.rmtree(self.directory, ignore_errors=True)
            self.directory = None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _quoted(value: str) -> str:
    """``value`` as the configuration file wants it when it holds blanks or quotes."""
    if "\n" in value or "\0" in value:
        raise EmbeddedServerError(f"{value!r} cannot stand in a server's configuration file")
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _write_private(path: Path, text: str) -> None:
    """Write a file that only this user can read, whole or not at all."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w") as file:
        file.write(text)
    part.replace(path)
