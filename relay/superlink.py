"""The data scientist's handle on a federation: submit runs, follow them, fetch what they made."""

from __future__ import annotations

import getpass
import logging
import os
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import gmtime, monotonic, sleep, strftime
from typing import Any, Literal, Self

from fedq.apps.client_app import ClientApp
from fedq.apps.configrecord import ConfigRecord
from fedq.apps.errors import AppError
from fedq.apps.history import History
from fedq.apps.metricrecord import MetricRecord
from fedq.apps.recorddict import RecordDict
from fedq.apps.server_app import ServerApp
from fedq.apps.strategy.result import Result
from fedq.apps.tracking import TrackedRun, Tracker, Tracking
from fedq.apps.user_config import UserConfig
from fedq.apps.wire import decode, decode_user_config, encode, encode_user_config, referenced
from fedq.apps.wire.records import Encoded
from fedq.relay import bundles, cleanup, events, links, nodes, objects, runs
from fedq.relay.connection import Relay
from fedq.relay.errors import RelayUnavailable, RunFailed, RunNotFound, RunStopped, RunTimeout
from fedq.relay.events import Event, follow
from fedq.relay.nodes import NodeState
from fedq.relay.pauses import Pauses
from fedq.relay.project import check_app, flat_config, load_reference, merged_config, read_project
from fedq.relay.runs import RunInfo, RunSpec, Step

log = logging.getLogger(__name__)

Durability = Literal["none", "replay"]

_HISTORY = ("train", "evaluate", "server")


@dataclass(repr=False)
class RunResult(Result):
    """What a run has made: a :class:`~fedq.apps.strategy.Result`, and which run that was.

    Attributes:
        run_id, name: the run's.
        seconds: from the start of its ServerApp to its end.
        attempts: how often its ServerApp was started.
    """

    run_id: int = 0
    name: str = ""
    seconds: float = 0.0
    attempts: int = 1
    config: UserConfig = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"run {self.run_id}, {self.seconds:.1f} s; {super().__repr__()}"


class SuperLink:
    """A federation, by its server. Usable as a context manager; safe to share between threads."""

    def __init__(self, relay: Relay) -> None:
        self.relay = relay

    @classmethod
    def connect(cls, url: str | None = None, *, home: str = "0") -> Self:
        """Connect to the federation at ``url``: ``redis://``, ``rediss://`` or ``unix://``.

        Without one, FEDQ_REDIS_URL or REDIS_URL says where, or else it is the local server. Raises RelayUnavailable,
        RelayAuthError or another RelayError if it cannot be used.
        """
        relay = Relay.connect(url, home=home, client_name="fedq-user")
        try:
            with relay.errors():
                relay.redis.ping()
        except BaseException:
            relay.close()
            raise
        return cls(relay)

    def close(self) -> None:
        """Close the connections."""
        self.relay.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(
        self,
        server_app: ServerApp | str | os.PathLike[str],
        client_app: ClientApp | str | None = None,
        *,
        config: Mapping[str, Any] | None = None,
        nodes: Mapping[str, str] | None = None,
        name: str | None = None,
        durability: Durability = "none",
        max_deliveries: int = 5,
        max_attempts: int = 5,
        time_limit: float | None = None,
        client_token: str | None = None,
        signing_key: bytes | str | os.PathLike[str] | None = None,
    ) -> Run:
        """Submit a run. A SuperLink starts it as soon as one has a free slot.

        Args:
            server_app: a ServerApp, ``"module:object"``, or, as the only app, the path of a project directory.
            client_app: a ClientApp or ``"module:object"``.
            config: the run's config: bool, int, float and str; nested tables are joined by dots. It overrides that of
                a project, whose keys and types it has to keep to.
            nodes: labels that a node must have to take part; None: all nodes.
            name: for people; the project's name by default.
            durability: for a ServerApp that never saves a checkpoint. "none": replies are freed some time after they
                were pulled, and if the ServerApp is interrupted after that, the run fails. "replay": all are kept.
            max_deliveries: how often a message is tried whose worker dies.
            max_attempts: how often the ServerApp is started from one checkpoint.
            time_limit: seconds that a ClientApp may take for one message; None: as long as the node allows.
            client_token: any text. A second submit with the same token within a day returns the first one's run.
            signing_key: an Ed25519 private key (32 bytes, PEM, or a path to either) to sign the ClientApp with, for
                nodes that ask for it; by default the one that FEDQ_SIGNING_KEY is the path of, if that is set.

        Raises:
            ConfigError, ProjectError, AppNotFound, AppIncomplete, BundleError: the app or its config is not right.
            RelayFull: the server has no room. Nothing was submitted.
        """
        _check_limits(durability, max_deliveries, max_attempts, time_limit)
        selector = _check_selector(nodes)
        packed = _pack(server_app, client_app, config)
        key = signing_key or os.environ.get("FEDQ_SIGNING_KEY")
        blobs = {packed.server.digest: packed.server.data, packed.client.digest: packed.client.data}
        spec = RunSpec(
            client_token=client_token or secrets.token_hex(16),
            name=name if name is not None else packed.name,
            user=_user(),
            config=encode_user_config(packed.config),
            server_bundle=packed.server.digest,
            client_bundle=packed.client.digest,
            server_size=len(packed.server.data),
            client_size=len(packed.client.data),
            server_kind=packed.server.kind,
            client_kind=packed.client.kind,
            client_signature=bundles.sign(packed.client.digest, _key(key)) if key else "",
            selector=selector,
            durability=durability,
            max_deliveries=max_deliveries,
            max_attempts=max_attempts,
            time_limit=time_limit or 0.0,
        )
        for attempt in range(3):
            objects.upload_bundle(self.relay, blobs)
            try:
                return Run(self.relay, runs.submit(self.relay, spec))
            except RunNotFound:  # an older run with the same app ended, and took its bundle, between the two steps
                if attempt == 2:
                    raise
        raise AssertionError("unreachable")

    def run(self, run_id: int) -> Run:
        """The run of that id. Raises RunNotFound."""
        runs.run_info(self.relay, run_id)
        return Run(self.relay, run_id)

    def runs(self, limit: int = 100) -> list[Run]:
        """The newest runs that are kept, newest first."""
        return [Run(self.relay, info.run_id) for info in runs.list_runs(self.relay, limit)]

    def nodes(self, selector: Mapping[str, str] | None = None) -> list[NodeState]:
        """The registered nodes, sorted by name; with a selector those that have these labels."""
        return nodes.list_nodes(self.relay, selector)

    def remove(self, run: Run | int) -> None:
        """Forget an ended run: status, events, result. Raises AppError if it is not over, RunNotFound."""
        run_id = run.run_id if isinstance(run, Run) else run
        runs.run_info(self.relay, run_id)
        if not cleanup.remove_run(self.relay, run_id):
            raise AppError(f"run {run_id} is not over; stop it first", run_id=run_id)

    def prune(self, older_than: float = 7 * 24 * 3600.0) -> list[int]:
        """Forget runs that ended more than so many seconds ago; their ids."""
        return prune(self.relay, older_than)

    def __repr__(self) -> str:
        from fedq.relay.connection import without_password

        return f"<SuperLink {without_password(self.relay.url)}>"


class Run:
    """One submitted run. Made by :meth:`SuperLink.submit` and :meth:`SuperLink.run`."""

    def __init__(self, relay: Relay, run_id: int) -> None:
        self.run_id = run_id
        self._relay = relay

    def info(self) -> RunInfo:
        """Everything that is known about it now. Raises RunNotFound when it was removed."""
        return runs.run_info(self._relay, self.run_id)

    @property
    def status(self) -> str:
        """``pending``, ``running``, ``finished``, ``failed`` or ``stopped``, as of now."""
        return self.info().status

    @property
    def config(self) -> UserConfig:
        """The config it was submitted with."""
        raw = self.info().config
        return decode_user_config(raw) if raw else {}

    def resume(self) -> None:
        """Let a failed run go on from its last checkpoint, with its attempts counted anew.

        Nothing that was answered is run again: the same messages, Contexts and journal are there as for an attempt that
        a SuperLink starts by itself. They are kept for a day after the failure (``fedq superlink --keep-failed``).

        Raises AppError, and changes nothing, if the run is not over, has not failed, or left nothing to go on from.
        """
        info = self.info()
        outcome = runs.resume_run(self._relay, self.run_id) if info.resumable or not info.over else Step.CLEANED
        if outcome is Step.OK:
            return
        why = {
            "pending": f"is {info.detail or 'pending'}; a SuperLink starts it as soon as it can",
            "running": "is running; a ServerApp that dies is started again without being told",
            "finished": "has finished; there is nothing to go on with",
            "stopped": "was stopped, and what it had is gone; submit it again",
            "failed": "has saved no checkpoint to go on from; submit it again"
            if info.checkpoint == 0 and info.durability != "replay"
            else "failed too long ago; what it needs to go on is gone; submit it again",
        }
        raise AppError(f"run {self.run_id} {why.get(info.status, info.status)}", run_id=self.run_id)

    def events(
        self, *, logs: bool = False, follow: bool = True, timeout: float | None = None, after: str = "0"
    ) -> Iterator[Event]:
        """What happens in the run, from its beginning: status, rounds, metrics, and what its ServerApp prints.

        Args:
            logs: also what its ClientApps print and log.
            follow: wait for more until the run is over; False ends after what is there now.
            timeout: seconds after which it ends in any case.
            after: an event's id; only what came later is given.
        """
        return _follow(self._relay, self.run_id, logs=logs, wait=follow, timeout=timeout, after=after)

    def logs(self, *, follow: bool = False) -> Iterator[Event]:
        """What ServerApp and ClientApps have printed and logged, in the order of time."""
        return (event for event in self.events(logs=True, follow=follow) if event.kind == "log")

    def history(self) -> History:
        """The metrics by round as of now, from the run's events, whether it goes on, has finished or has failed.

        ``run.history().take(run.result())`` adds those that only the result has.
        """
        history = History()
        for event in self.events(follow=False):
            history.feed(event.kind, event.data)
        return history

    def track(self, *trackers: Tracker, timeout: float | None = None) -> History:
        """Write the run's metrics to trackers, from its beginning until it is over; returns them.

        May be repeated, also for a run that is over: no tracker shows a point twice. A tracker that fails on the way is
        left out, with a warning in the log.

        Args:
            timeout: seconds after which it ends in any case.
        """
        with Tracking(self.tracked(), trackers) as tracking:
            for event in self.events(timeout=timeout):
                tracking.event(event)
        return tracking.history

    def tracked(self) -> TrackedRun:
        """What trackers call it. The key has the time of submission: each federation counts its runs by itself."""
        info = self.info()
        seconds, milliseconds = divmod(round(info.created * 1000), 1000)
        moment = strftime("%Y%m%d-%H%M%S", gmtime(seconds))
        return TrackedRun(
            f"run-{self.run_id}-{moment}-{milliseconds:03d}", info.name or f"run {self.run_id}", self.config
        )

    def wait(self, timeout: float | None = None) -> RunInfo:
        """Wait until the run is over. Raises RunTimeout after ``timeout`` seconds. An outage is waited for."""
        deadline = None if timeout is None else monotonic() + timeout
        with self._relay.errors():
            newest: Any = self._relay.redis.xrevrange(self._relay.keys.events(self.run_id), count=1)
        last, pauses = newest[0][0].decode() if newest else "0", Pauses()
        info = self.info()
        while not info.over:
            left = 5.0 if deadline is None else deadline - monotonic()
            if left <= 0:
                more = f" ({info.detail or self._why_pending(info)})" if info.detail or info.status == "pending" else ""
                raise RunTimeout(
                    f"run {self.run_id} is still {info.status}{more} after {timeout:g} s; it goes on",
                    run_id=self.run_id,
                )
            try:
                for event in events.read_events(self._relay, self.run_id, last, block=min(5.0, left)):
                    last = event.id
                info = self.info()
                pauses.reset()
            except RelayUnavailable as error:
                log.warning("run %d: %s; waiting for it", self.run_id, error)
                pause = pauses.next()
                sleep(pause if deadline is None else max(0.0, min(pause, left)))
        return info

    def _why_pending(self, info: RunInfo) -> str:
        return (
            "it is about to start"
            if links.live(self._relay)
            else "no SuperLink is there: start one with fedq superlink"
        )

    def result(self, timeout: float | None = None) -> RunResult:
        """Wait for the end, and fetch what the run has made.

        Raises:
            RunTimeout: it is not over after ``timeout`` seconds.
            RunFailed: with the reason and the ServerApp's traceback.
            RunStopped: somebody stopped it.
        """
        info = self.wait(timeout)
        if info.status == "stopped":
            raise RunStopped(f"run {self.run_id} was stopped ({info.reason})", run_id=self.run_id)
        if info.status == "failed":
            text = f"run {self.run_id} failed: {info.reason}"
            if info.traceback:
                text += f"\n\n{info.traceback}"
            raise RunFailed(text, reason=info.reason, traceback=info.traceback or None, run_id=self.run_id)
        return fetch_result(self._relay, info)

    def stop(self, reason: str = "stopped by a user") -> bool:
        """Stop it, here and on the nodes, within about two seconds. False if it was over already."""
        return runs.stop_run(self._relay, self.run_id, reason)

    def remove(self) -> None:
        """Forget it; see :meth:`SuperLink.remove`."""
        SuperLink(self._relay).remove(self)

    def __repr__(self) -> str:
        return f"<Run {self.run_id}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Run) and other.run_id == self.run_id and other._relay.url == self._relay.url

    def __hash__(self) -> int:
        return hash((self.run_id, self._relay.url))


_follow = follow


# -- results ----------------------------------------------------------------------------------------------------------


def encode_result(result: Result) -> Encoded:
    """A Result as wire data: its arrays, and one record of metrics for each part and round."""
    histories = (
        result.train_metrics_clientapp,
        result.evaluate_metrics_clientapp,
        result.evaluate_metrics_serverapp,
    )
    content = RecordDict({"arrays": result.arrays})
    for part, history in zip(_HISTORY, histories, strict=True):
        for number, metrics in history.items():
            content[f"{part}.{int(number)}"] = metrics
    content["fedq"] = ConfigRecord({"version": 1})
    return encode(content, inline_limit=objects.INLINE_LIMIT)


def fetch_result(relay: Relay, info: RunInfo) -> RunResult:
    """The result of a finished run, with its arrays."""
    found = RunResult(
        run_id=info.run_id,
        name=info.name,
        seconds=max(0.0, info.ended - info.started),
        attempts=info.attempt,
        config=decode_user_config(info.config) if info.config else {},
    )
    if not info.result:
        return found
    content = decode(info.result, objects.fetch_shared(relay, referenced(info.result)))
    found.arrays = content.array_records["arrays"]
    parts: dict[str, dict[int, MetricRecord]] = {
        "train": found.train_metrics_clientapp,
        "evaluate": found.evaluate_metrics_clientapp,
        "server": found.evaluate_metrics_serverapp,
    }
    for key, metrics in content.metric_records.items():
        part, _, number = key.partition(".")
        parts[part][int(number)] = metrics
    return found


def prune(relay: Relay, older_than: float) -> list[int]:
    """Remove the runs that ended more than ``older_than`` seconds ago; their ids."""
    limit = relay.now() - older_than
    with relay.errors():
        raw: Any = relay.redis.zrangebyscore(relay.keys.runs(), "-inf", int(limit * 1000))
    removed = []
    for run_id in map(int, raw):
        try:
            info = runs.run_info(relay, run_id)
        except RunNotFound:
            cleanup.remove_run(relay, run_id)
            continue
        if info.over and info.ended < limit and cleanup.remove_run(relay, run_id):
            removed.append(run_id)
    return removed


# -- packing ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Packed:
    name: str
    config: UserConfig
    server: bundles.Bundle
    client: bundles.Bundle


def _pack(
    server_app: ServerApp | str | os.PathLike[str],
    client_app: ClientApp | str | None,
    config: Mapping[str, Any] | None,
) -> _Packed:
    if client_app is None:
        if not isinstance(server_app, str | os.PathLike):
            raise AppError("a run needs two apps: submit(server_app, client_app), or submit of a project directory")
        project = read_project(server_app)
        bundle = bundles.pack_project(project)
        return _Packed(project.name, merged_config(project.config, config), bundle, bundle)
    chosen = flat_config(config or {})
    server = _app(server_app, ServerApp, "the first app")
    client = _app(client_app, ClientApp, "the second app")
    name = server_app.partition(":")[0].partition(".")[0] if isinstance(server_app, str) else _name_of(server)
    return _Packed(name, chosen, bundles.pack_object(server), bundles.pack_object(client))


def _app(app: object, kind: type[ServerApp] | type[ClientApp], what: str) -> Any:
    if isinstance(app, str):
        return load_reference(app, kind)
    return check_app(app, kind, what)


def _name_of(app: ServerApp) -> str:
    module = str(getattr(app._main, "__module__", "") or "")
    return "" if module in ("__main__", "builtins") else module.rpartition(".")[2]


def _check_limits(durability: str, max_deliveries: int, max_attempts: int, time_limit: float | None) -> None:
    if durability not in ("none", "replay"):
        raise AppError(f'durability is "none" or "replay", not {durability!r}')
    for name, value in (("max_deliveries", max_deliveries), ("max_attempts", max_attempts)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise AppError(f"{name} is a whole number of at least 1, not {value!r}")
    if time_limit is not None and not (isinstance(time_limit, int | float) and 0 < time_limit < float("inf")):
        raise AppError(f"time_limit is a positive number of seconds, not {time_limit!r}")


def _check_selector(selector: Mapping[str, str] | None) -> dict[str, str]:
    if selector is None:
        return {}
    if not isinstance(selector, Mapping) or not all(
        isinstance(key, str) and isinstance(value, str) for key, value in selector.items()
    ):
        raise AppError(f'nodes is a mapping of labels to values, such as {{"site": "eu"}}, not {selector!r}')
    return dict(selector)


def _user() -> str:
    try:
        return os.environ.get("FEDQ_USER") or getpass.getuser()
    except (KeyError, OSError):
        return ""


def _key(key: bytes | str | os.PathLike[str]) -> bytes:
    if isinstance(key, bytes):
        return key
    try:
        return Path(key).expanduser().read_bytes()
    except OSError as error:
        raise bundles.BundleError(f"the signing key {key} cannot be read: {error.strerror}") from error


__all__ = ["Durability", "Run", "RunResult", "SuperLink", "encode_result", "fetch_result", "prune"]
