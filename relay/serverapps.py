"""ServerApp jobs: what the workers of a SuperLink are given to do."""

from __future__ import annotations

import contextlib
import logging
import time
import traceback as traceback_module
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from fedq.apps.errors import FedqError
from fedq.apps.server_app import ServerApp
from fedq.apps.strategy.result import Result
from fedq.relay import bundles, events, objects, runs
from fedq.relay.attempt import PATIENCE
from fedq.relay.claims import new_token
from fedq.relay.connection import Relay, patiently
from fedq.relay.errors import (
    Fenced,
    ObjectCorrupt,
    ObjectMissing,
    RelayFull,
    RelayReadOnly,
    RevisionLost,
    RunNotFound,
    RunOver,
)
from fedq.relay.grid import RedisGrid
from fedq.relay.host import process_name
from fedq.relay.jobs import Assignment, Cause, CauseKind, FedqJob, ForeignJob, Outcome, Verdict, Work, app_started
from fedq.relay.jobs.heap import keep_freed
from fedq.relay.logs import LogShipper, captured
from fedq.relay.pauses import Pauses
from fedq.relay.runs import RunClaim, RunInfo, Step
from fedq.relay.superlink import encode_result
from fedq.relay.texts import text

log = logging.getLogger(__name__)

SOURCE = "serverapp"


def job_id(run: int, attempt: int, number: int = 1) -> str:
    """The RQ job of a run's attempt; ``number`` counts jobs that came to nothing before they had claimed the run."""
    return f"_serverapps_{run}_{attempt}" + (f"_{number}" if number > 1 else "")


def describe(info: RunInfo, attempt: int) -> str:
    """A job's description, for whoever looks at a dashboard."""
    name = f" {info.name}" if info.name else ""
    by = f" for {info.user}" if info.user else ""
    return f"ServerApp of run {info.run_id}{name}{by}, attempt {attempt}"


@dataclass(frozen=True, slots=True)
class Settings:
    """What ServerApp workers need to know. ``cache_folder`` is where project directories are extracted."""

    url: str
    cache_folder: Path
    home: str = "0"
    lease: float = runs.RUN_LEASE


class ServerAppWork(Work):
    """Makes assignments of the jobs in ``_serverapps``. One per worker; each process has connections of its own."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._relay: Relay | None = None
        self._renewals: Relay | None = None

    @property
    def relay(self) -> Relay:
        """The connection of the process that executes, beside those of the Grid."""
        if self._relay is None:
            self._relay = Relay(self.settings.url, home=self.settings.home, client_name="fedq-serverapp")
        return self._relay

    @property
    def renewals(self) -> Relay:
        """The parent's connection, for renewals and last words."""
        if self._renewals is None:
            self._renewals = Relay(self.settings.url, home=self.settings.home, client_name="fedq-renew", retries=1)
        return self._renewals

    def assignment(self, job: FedqJob) -> ServerAppAssignment:
        """The assignment of a job that housekeeping made, with a new token."""
        request = job.request()
        try:
            return ServerAppAssignment(self, int(request["run"]), int(request["attempt"]), new_token())
        except (KeyError, TypeError, ValueError) as error:
            raise ForeignJob(f"job {job.id} refused: it is no job of a SuperLink ({error!r})") from error

    def rebuild(self, description: Mapping[str, Any]) -> ServerAppAssignment:
        """The same assignment, with its token, in another process."""
        return ServerAppAssignment(self, description["run"], description["attempt"], description["token"])

    def forked(self) -> None:
        """Connections belong to the process that made them."""
        self._relay = self._renewals = None


class ServerAppAssignment(Assignment):
    """One attempt of one run's ServerApp."""

    kind = SOURCE
    time_limit: float | None = None

    def __init__(self, work: ServerAppWork, run: int, attempt: int, token: str) -> None:
        self.work = work
        self.run_id = run
        self.group = str(run)
        self.token = token
        self._attempt = attempt
        self._held = False

    def describe(self) -> dict[str, Any]:
        """JSON for :meth:`ServerAppWork.rebuild`."""
        return {"run": self.run_id, "attempt": self._attempt, "token": self.token}

    # -- where the app runs --------------------------------------------------------------------------------------------

    def execute(self) -> Outcome:
        """Claim the run, run its ServerApp, end the run."""
        keep_freed()
        relay = self.work.relay
        claim = _insist(
            lambda: runs.claim_run(relay, self.run_id, self.token, lease=self.work.settings.lease, owner=process_name())
        )
        if claim.outcome is not Step.OK:
            return Outcome(claim.outcome.value.lower())
        assert claim.info is not None
        return _Attempt(relay, claim, self.token, self.work.settings.cache_folder).run()

    # -- the worker's parent process -----------------------------------------------------------------------------------

    def renew(self) -> Verdict:
        """Go on holding the run, or hear why not."""
        relay = self.work.renewals
        match runs.renew_run(relay, self.run_id, self.token, lease=self.work.settings.lease):
            case Step.OK:
                self._held = True
                return Verdict.OK
            case Step.FENCED:
                # Before the claim the token is not the run's yet; a claim that is refused ends by itself.
                return Verdict.STOP if self._held else Verdict.OK
            case _:
                with relay.errors():
                    status: Any = relay.redis.hget(relay.keys.run(self.run_id), "status")
                return Verdict.STOP if text(status or b"stopped") == "stopped" else Verdict.DONE

    def died(self, cause: Cause) -> str:
        """Give the run back for the next attempt, which housekeeping starts, or fails the run if that was the last."""
        if cause.kind is CauseKind.STOPPED:
            return cause.detail
        relay = self.work.renewals
        try:
            info = runs.run_info(relay, self.run_id)
        except RunNotFound:
            return f"{cause.detail}; the run was removed meanwhile"
        if info.over or info.token != self.token:
            return f"{cause.detail}; the run had left this attempt by then"
        said = f"the process of the ServerApp was lost in attempt {info.attempt}: {cause.detail}"
        lines = [said, *(cause.traceback or "").rstrip().splitlines()]
        with contextlib.suppress(RelayFull, RelayReadOnly):
            events.note(relay, self.run_id, self.token, [("log", _line(line, "ERROR")) for line in lines])
            runs.set_detail(relay, self.run_id, said)
        runs.release_run(relay, self.run_id, self.token, counts=True)
        return said

    def released(self) -> str:
        """The SuperLink shuts down: another one goes on from the checkpoint, and this attempt does not count."""
        freed = runs.release_run(self.work.renewals, self.run_id, self.token, counts=False) is Step.OK
        return "the SuperLink shut down" + ("; the run goes on from its checkpoint" if freed else "")


class _Attempt:
    """From a claim to the end of the run, or of this attempt."""

    def __init__(self, relay: Relay, claim: RunClaim, token: str, cache_folder: Path) -> None:
        assert claim.info is not None
        self.relay = relay
        self.claim = claim
        self.info = claim.info
        self.token = token
        self.cache_folder = cache_folder
        self._started = time.monotonic()

    def run(self) -> Outcome:
        try:
            with self._captured():
                status, reason, trace, result = self._run_app()
            return self._finish(status, reason, trace, result)
        except (Fenced, RevisionLost) as error:
            log.warning("run %d: %s", self.info.run_id, error)
            if isinstance(error, RevisionLost):
                with contextlib.suppress(FedqError):
                    runs.release_run(self.relay, self.info.run_id, self.token, counts=False)
            return self._outcome("superseded", {"reason": str(error)})
        except RunOver as error:
            return self._outcome("over", {"reason": str(error)})

    def _run_app(self) -> tuple[str, str, str, Result | None]:
        """Load the app and run it; how the run ends: status, reason, traceback, result."""
        try:
            app = self._load()
        except bundles.LoadError as error:
            return "failed", str(error), error.traceback or "", None
        with contextlib.closing(RedisGrid(self.relay, self.claim, self.token)) as grid:
            return self._run_main(app, grid)

    def _run_main(self, app: ServerApp, grid: RedisGrid) -> tuple[str, str, str, Result | None]:
        if not grid.replayable:
            return (
                "failed",
                "the ServerApp was interrupted, and it cannot go on: it had not saved its Context, and replies that it "
                'had pulled are freed (durability "none"); call context.save() in it, or submit it with '
                'durability="replay"',
                "",
                None,
            )
        app_started()
        try:
            app(grid, grid.context)
        except (Fenced, RevisionLost, RunOver):
            raise
        except SystemExit as error:
            if error.code in (None, 0):
                return "finished", "", "", grid.result
            return "failed", f"the ServerApp called sys.exit({error.code!r})", _trace(error), None
        except Exception as error:
            return "failed", _reason(error), _trace(error), None
        return "finished", "", "", grid.result

    def _load(self) -> ServerApp:
        info = self.info
        try:
            data = _insist(lambda: objects.fetch_shared(self.relay, [info.server_bundle])[info.server_bundle])
        except (ObjectMissing, ObjectCorrupt) as error:
            raise bundles.LoadError(f"the ServerApp's bundle could not be fetched: {error}") from error
        return bundles.load_server_app(info.server_kind, data, info.server_bundle, self.cache_folder)

    def _finish(self, status: str, reason: str, trace: str, result: Result | None) -> Outcome:
        encoded, blobs = b"", {}
        if result is not None:
            try:
                made = encode_result(result)
                encoded, blobs = made.data, made.blobs
            except FedqError as error:
                status, reason, trace = "failed", f"the run's result cannot be stored: {error}", _trace(error)

        def finish() -> Step:
            objects.upload_shared(self.relay, self.info.run_id, self.token, "result", blobs, guard=False)
            return runs.finish(
                self.relay,
                self.info.run_id,
                self.token,
                status,
                result=(encoded, tuple(blobs)),
                reason=reason,
                traceback=trace,
            )

        for _ in range(3):
            try:
                outcome = _insist(finish)
            except RunOver:
                # Perhaps by ourselves: the first answer got lost.
                outcome = runs.finish(self.relay, self.info.run_id, self.token, status)
            if outcome is not Step.MISSING:
                break
        if outcome is Step.FENCED:
            raise Fenced("another attempt holds the run", run_id=self.info.run_id)
        if outcome is Step.OVER:
            return self._outcome("over")
        meta = {"error": reason} if reason else {}
        return self._outcome(status, meta, failure=(trace or reason) if status == "failed" else None)

    def _outcome(self, status: str, meta: Mapping[str, Any] | None = None, failure: str | None = None) -> Outcome:
        seconds = round(time.monotonic() - self._started, 3)
        facts = {"attempt": self.claim.attempt, "seconds": seconds, **(meta or {})}
        return Outcome(status, facts, failure=failure, description=describe(self.info, self.claim.attempt))

    @contextlib.contextmanager
    def _captured(self) -> Iterator[None]:
        """What the ServerApp logs and prints becomes ``log`` events of its run."""

        def send(lines: Sequence[Mapping[str, Any]]) -> bool:
            return events.note(self.relay, self.info.run_id, self.token, [("log", line) for line in lines])

        shipper = LogShipper(send, {"source": SOURCE})
        try:
            with captured(lambda line, level, origin: shipper.add(line, level=level, origin=origin)):
                yield
        finally:
            shipper.close()


def _insist(action: Any) -> Any:
    """``action``, as often as it takes while the server is away or full."""
    give_up = time.monotonic() + PATIENCE
    pauses = Pauses()
    while True:
        try:
            return patiently(action, on_wait=lambda error, _: log.warning("%s; waiting for it", error))
        except (RelayFull, RelayReadOnly) as error:
            if time.monotonic() >= give_up:
                raise
            log.warning("%s; trying again", error)
            time.sleep(pauses.next())


def _line(words: str, level: str) -> dict[str, Any]:
    return {"source": SOURCE, "time": round(time.time(), 3), "level": level, "origin": "fedq", "text": words}


def _reason(error: BaseException) -> str:
    """One line about an exception; ours say enough without their type."""
    said = str(error).strip()
    if isinstance(error, FedqError) and said:
        return said
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _trace(error: BaseException) -> str:
    """The traceback of an exception, without the frames that led to the app."""
    trace: TracebackType | None = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename in (__file__, _SERVER_APP):
        trace = trace.tb_next
    return "".join(traceback_module.format_exception(type(error), error, trace or error.__traceback__))


_SERVER_APP = ServerApp.__call__.__code__.co_filename

__all__ = ["ServerAppAssignment", "ServerAppWork", "Settings", "describe", "job_id"]
