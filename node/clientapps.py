"""ClientApp jobs: what the workers of a node are given to do."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from fedq.apps.error import Error, ErrorCode
from fedq.apps.errors import FedqError
from fedq.apps.lazy import load
from fedq.apps.wire import encode_error
from fedq.node.bundle import AppCache
from fedq.node.cache import ArrayCache, ObjectCache
from fedq.node.execution import Errand, Execution
from fedq.node.imposed import Imposed
from fedq.node.rehearsal import rehearse
from fedq.node.settings import NodeSettings
from fedq.relay import claims, events, messages
from fedq.relay.claims import Commit, Renew
from fedq.relay.connection import SOCKET_TIMEOUT, Relay
from fedq.relay.host import process_name
from fedq.relay.jobs import Assignment, Cause, CauseKind, FedqJob, ForeignJob, Outcome, Verdict, Work, parent
from fedq.relay.logs import LogShipper, captured
from fedq.relay.messages import Answered, Reason
from fedq.relay.runs import OPEN
from fedq.relay.texts import text

AHEAD = 64 * 1024
"""Bytes of an instruction and a Context that a worker hands to the process it has forked for them; with more it claims
for itself."""


class ClientAppWork(Work):
    """Makes assignments of the jobs in a node's queue. One per worker; each process has connections of its own."""

    def __init__(self, settings: NodeSettings) -> None:
        self.settings = settings
        self.cache: ArrayCache = ObjectCache(settings.cache_folder / "arrays", settings.cache_bytes)
        self.apps = AppCache(settings.cache_folder, self.cache)
        # Before any app is loaded, whose modules might have the same names.
        self.imposed = Imposed(settings.mods)
        self._worker = process_name()
        self._relay: Relay | None = None
        self._renewals: Relay | None = None
        self._steps: Relay | None = None
        # Made here and connected in whatever process uses it, so that a forked one has less to do.
        self._unused: Relay | None = self._connect("app", retries=3)

    @property
    def relay(self) -> Relay:
        """This process' connection for the work itself."""
        if self._relay is None:
            self._relay, self._unused = self._unused or self._connect("app", retries=3), None
        return self._relay

    @property
    def renewals(self) -> Relay:
        """The parent's connection for renewing and answering. It gives up soon: renewals come every second."""
        if self._renewals is None:
            self._renewals = self._connect("renew", retries=1)
        return self._renewals

    @property
    def steps(self) -> Relay:
        """The parent's connection for what it does on behalf of a process forked for one message. It gives up at once:
        that process can do it as well, and wait."""
        if self._steps is None:
            self._steps = self._connect("steps", retries=0, timeout=2.0)
        return self._steps

    def _connect(self, purpose: str, *, retries: int, timeout: float = SOCKET_TIMEOUT) -> Relay:
        # Nobody has the time to read the name of a connection that serves one small message.
        brief = purpose == "app" and self.settings.isolation == "fork"
        name = "" if brief else f"fedq-{self.settings.name}-{purpose}"
        return Relay.connect(self.settings.redis_url, client_name=name, retries=retries, timeout=timeout)

    def assignment(self, job: FedqJob) -> Assignment:
        """The assignment of a job that a dispatcher made, with a new token."""
        self._worker = process_name()
        request = job.request()
        try:
            errand = Errand(
                node=str(request["node"]),
                run=int(request["run"]),
                entry=str(request["entry"]),
                message=str(request["message"]),
                token=claims.new_token(),
                type=str(request["type"]),
                group=str(request["group"]),
                worker=self._worker,
            )
            limit = None if request["limit"] is None else float(request["limit"])
        except (KeyError, TypeError, ValueError) as error:
            raise ForeignJob(f"job {job.id} refused: it is no job of a SuperNode's dispatcher ({error!r})") from error
        if errand.node != self.settings.name:
            raise ForeignJob(f"job {job.id} refused: it is for node {errand.node!r}, not for {self.settings.name!r}")
        # The operator's limit holds whatever the job says: a queue may be shared.
        limits = [value for value in (limit, self.settings.time_limit) if value]
        return ClientAppAssignment(self, errand, min(limits) if limits else None)

    def rebuild(self, description: Mapping[str, Any]) -> Assignment:
        """The same assignment, with its token, in another process."""
        return ClientAppAssignment(self, Errand(**description["errand"]), description["time_limit"])

    def alive(self, group: str) -> bool:
        """Whether the run may still send messages."""
        with self.renewals.errors():
            status: Any = self.renewals.redis.hget(self.renewals.keys.run(int(group)), "status")
        return status is not None and text(status) in OPEN

    def capture(self, assignment: Assignment) -> AbstractContextManager[object]:
        """What the app logs and prints goes to its run's log, unless the operator keeps it."""
        assert isinstance(assignment, ClientAppAssignment)
        return assignment.capture() if self.settings.ship_logs else contextlib.nullcontext()

    def preload(self) -> Iterator[object]:
        """What apps may import, and what every message needs."""
        yield from load("fedq.apps", "fedq.apps.mod", "fedq.apps.strategy")
        yield from rehearse(self.settings, ClientAppWork)

    def forked(self) -> None:
        """Connections belong to the process that made them."""
        self._relay = self._renewals = self._steps = None


class ClientAppAssignment(Assignment):
    """One message of one run, for one execution of its ClientApp."""

    kind = "clientapp"

    def __init__(
        self,
        work: ClientAppWork,
        errand: Errand,
        time_limit: float | None,
        settings: NodeSettings | None = None,
        *,
        alone: bool = True,
    ) -> None:
        self.work = work
        self.alone = alone
        """Whether this is all that the job is about."""
        self.settings = settings or work.settings
        self.errand = errand
        self.run_id = errand.run
        self.group = str(errand.run)
        self.time_limit = time_limit
        self._shipper: LogShipper | None = None
        self._finish_lines: Callable[[], None] | None = None
        self._attempt = 0

    def describe(self) -> dict[str, Any]:
        """JSON for :meth:`ClientAppWork.rebuild`."""
        e = self.errand
        return {"errand": {name: getattr(e, name) for name in Errand.__slots__}, "time_limit": self.time_limit}

    # -- where the app runs --------------------------------------------------------------------------------------------

    def execute(self) -> Outcome:
        """Claim, run the app, commit."""
        return Execution(
            self.settings,
            self.work.relay,
            self.errand,
            apps=self.work.apps,
            cache=self.work.cache,
            imposed=self.work.imposed,
            parent=parent() if self.alone else None,
            on_claim=self._claimed,
            on_error=self._failed,
            on_replied=self._replied,
        ).run()

    @contextlib.contextmanager
    def capture(self) -> Iterator[None]:
        """Send what is printed and logged inside to the run's log."""
        e = self.errand
        common = {"source": e.node, "node": e.node, "message": e.message, "type": e.type}

        def send(lines: Sequence[Mapping[str, Any]]) -> bool:
            return events.append_log(self.work.relay, e.node, e.run, lines)

        shipper = self._shipper = LogShipper(send, common)
        try:
            with captured(lambda line, level, origin: shipper.add(line, level=level, origin=origin)) as finish:
                self._finish_lines = finish
                yield
        finally:
            self._shipper = self._finish_lines = None
            shipper.close()

    def _claimed(self, attempt: int) -> None:
        self._attempt = attempt

    def _failed(self, error: Error) -> None:
        """An error reply shows in the log as well."""
        if self._shipper is not None:
            what = f"{error.name}: {error.reason}"
            for line in (f"{what}\n{error.traceback}" if error.traceback else what).rstrip().split("\n"):
                self._shipper.add(line, level="ERROR", origin="fedq")

    def _replied(self) -> None:
        """Its lines come before its reply: with that the run may be over, and takes no lines any more."""
        if self._finish_lines is not None:
            self._finish_lines()
        if self._shipper is not None:
            self._shipper.flush()

    # -- the worker's parent process -----------------------------------------------------------------------------------

    def ahead(self) -> Any:
        """The claim, as the server answers it. Should it get lost, the child claims with the same token."""
        e = self.errand
        try:
            claimed = claims.ask_claim(
                self.work.steps, e.node, e.run, e.entry, e.message, e.token, lease=self.settings.lease, worker=e.worker
            )
        except FedqError:
            return None
        # A longer one could fill the socket while nobody reads it.
        return claimed if claims.size(claimed) <= AHEAD else None

    def answer(self, request: Any) -> Any:
        """The child's commit. Should the answer get lost, the child commits again with the same token."""
        e = self.errand
        try:
            committed = claims.commit(self.work.steps, e.node, e.run, e.entry, e.message, e.token, **request)
        except FedqError:
            return None
        return committed.outcome.value

    def renew(self) -> Verdict:
        """Prolong the lease, or hear that it is of no use any more."""
        e = self.errand
        outcome = claims.renew(
            self.work.renewals, e.node, e.run, e.entry, e.message, e.token, lease=self.settings.lease
        )
        match outcome:
            case Renew.OK | Renew.UNCLAIMED:
                return Verdict.OK
            case Renew.COMMITTED:
                return Verdict.DONE
            case _:
                return Verdict.STOP

    def died(self, cause: Cause) -> str:
        """Over its limit: an error reply. Dead of something else: another try, or an error reply if that was the last.

        Stopped: nothing but to free the claim, if there is one left.
        """
        match cause.kind:
            case CauseKind.TIME_LIMIT:
                return self._over_limit(cause)
            case CauseKind.STOPPED:
                self._free(counts=True)
                return cause.detail
            case _:
                return self._crashed(cause)

    def released(self) -> str:
        """The worker shuts down: the message is tried again, and this attempt does not count."""
        freed = self._free(counts=False)
        return "the worker shut down" + ("; the message will be tried again" if freed else "")

    def _free(self, *, counts: bool) -> bool:
        e = self.errand
        return claims.release(self.work.renewals, e.node, e.message, e.token, counts=counts)

    def _over_limit(self, cause: Cause) -> str:
        e = self.errand
        limit = f"{self.time_limit:g} s" if self.time_limit else "its limit"
        error = Error(
            ErrorCode.TIME_LIMIT,
            f"the ClientApp was still running on {e.node} after {limit} and was killed; allow it more time "
            "(the run's time_limit, the node's --time-limit) or let it do less per message",
        )
        committed = claims.commit(
            self.work.renewals,
            e.node,
            e.run,
            e.entry,
            e.message,
            e.token,
            ok=False,
            body=encode_error(error),
            code=int(error.code),
        )
        if committed.outcome is Commit.COMMITTED:
            return f"{cause.detail}; answered: {error.reason}"
        return f"{cause.detail}; its message was settled otherwise ({committed.outcome.value.lower()})"

    def _crashed(self, cause: Cause) -> str:
        e = self.errand
        if not self._free(counts=True):
            return f"{cause.detail}; its message was settled otherwise"
        error = Error(
            ErrorCode.CLIENT_APP_CRASHED,
            f"the process that ran the ClientApp on {e.node} was lost again and again, the last time like this: "
            f"{cause.detail}; the run allows no more attempts (max_deliveries)",
            traceback=cause.traceback,
        )
        answered = messages.answer(self.work.renewals, e.run, e.node, e.entry, e.message, Reason.EXHAUSTED, error)
        if answered is Answered.ANSWERED:
            return f"{cause.detail}; answered: {error.reason}"
        return f"{cause.detail}; the message will be tried again" + (f"\n{cause.traceback}" if cause.traceback else "")


__all__ = ["ClientAppAssignment", "ClientAppWork"]
