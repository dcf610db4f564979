"""ClientApp jobs of virtual nodes: some messages of one run, to different nodes, in one RQ job.

A job names messages; it owns none of them. Each is claimed, executed, fenced and committed by itself, exactly as on a
node of its own, so that a worker's death costs the message it was at, and nothing else. What a job has not come to
after a while goes back to the dispatcher, which shares it out anew: a batch never makes a worker sit on messages that
another one is free for.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from fedq.node.cache import ArrayCache
from fedq.node.clientapps import ClientAppAssignment, ClientAppWork
from fedq.node.execution import WAITED_FOR, Errand
from fedq.node.settings import NodeSettings
from fedq.node.virtual import VirtualNodes
from fedq.relay import claims
from fedq.relay.claims import Renew
from fedq.relay.connection import Relay
from fedq.relay.host import process_name
from fedq.relay.jobs import Assignment, Cause, FedqJob, ForeignJob, Outcome, Verdict
from fedq.relay.texts import text

BUDGET = 0.25
"""Seconds after which a job begins no further message."""
KEPT_BYTES = 256 * 1024**2
"""Bytes of arrays that one process of a worker keeps in memory for the next messages."""


class RecentArrays(ArrayCache):
    """The arrays last seen, in memory: what one virtual node has fetched, the next one in the process need not.

    Those who put arrays here have verified them, and nobody can change them: apps see them read-only.
    """

    def __init__(self, limit: int = KEPT_BYTES) -> None:
        self.limit = limit
        self._held: OrderedDict[str, memoryview] = OrderedDict()
        self._bytes = 0

    def get(self, digest: str, nbytes: int | None = None) -> memoryview | None:
        found = self._held.get(digest)
        if found is None or (nbytes is not None and found.nbytes != nbytes):
            return None
        self._held.move_to_end(digest)
        return found

    def put(self, blobs: Mapping[str, bytes | bytearray | memoryview]) -> None:
        for digest, blob in blobs.items():
            view = memoryview(blob).toreadonly().cast("B")
            if digest in self._held or view.nbytes > self.limit:
                continue
            self._held[digest] = view
            self._bytes += view.nbytes
        while self._bytes > self.limit:
            self._bytes -= self._held.popitem(last=False)[1].nbytes


class VirtualWork(ClientAppWork):
    """Makes assignments of the jobs in the queue of a service with virtual nodes."""

    def __init__(self, settings: NodeSettings) -> None:
        super().__init__(settings)
        self.virtual = VirtualNodes(settings)
        self.cache = RecentArrays(min(KEPT_BYTES, settings.cache_bytes))

    def assignment(self, job: FedqJob) -> Batch:
        """The assignment of a job that a dispatcher made, with a new token for each message."""
        request = job.request()
        worker = process_name()
        try:
            run = int(request["run"])
            errands = [
                Errand(str(node), run, str(entry), str(message), claims.new_token(), str(kind), str(group), worker)
                for node, entry, message, kind, group in request["messages"]
            ]
            limit = None if request["limit"] is None else float(request["limit"])
        except (KeyError, TypeError, ValueError) as error:
            raise ForeignJob(f"job {job.id} refused: it is no job of virtual nodes ({error!r})") from error
        if foreign := [errand.node for errand in errands if errand.node not in self.virtual]:
            raise ForeignJob(f"job {job.id} refused: {foreign[0]!r} is no virtual node of {self.settings.name!r}")
        limits = [value for value in (limit, self.settings.time_limit) if value]
        return Batch(self, job.id, run, errands, min(limits) if limits else None)

    def rebuild(self, description: Mapping[str, Any]) -> Batch:
        """The same assignment, with its tokens, in another process."""
        errands = [Errand(*values) for values in description["errands"]]
        return Batch(self, description["job"], description["run"], errands, description["time_limit"])

    def capture(self, assignment: Assignment) -> AbstractContextManager[object]:
        """For each message by itself: what its app says goes to the run's log under its node's name."""
        return super().capture(assignment) if isinstance(assignment, ClientAppAssignment) else nullcontext()


class Batch(Assignment):
    """Messages of one run, one after the other, each an assignment of its own."""

    kind = "clientapp"

    def __init__(
        self,
        work: VirtualWork,
        job: str,
        run: int,
        errands: Sequence[Errand],
        time_limit: float | None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.work = work
        self.job = job
        self.run_id = run
        self.group = str(run)
        self.time_limit = time_limit
        self.parts = [ClientAppAssignment(work, e, time_limit, work.virtual[e.node], alone=False) for e in errands]
        self._clock = clock
        self._open = list(self.parts)
        self._doubted: str | None = None

    def describe(self) -> dict[str, Any]:
        """JSON for :meth:`VirtualWork.rebuild`."""
        errands = [[getattr(part.errand, name) for name in Errand.__slots__] for part in self.parts]
        return {"job": self.job, "run": self.run_id, "errands": errands, "time_limit": self.time_limit}

    # -- where the app runs --------------------------------------------------------------------------------------------

    def execute(self) -> Outcome:
        """Claim, run the app and commit, message by message, until the time is up; give back the rest."""
        began = self._clock()
        became: Counter[str] = Counter()
        failures: list[str] = []
        app_seconds = 0.0
        bytes_out = 0
        for place, part in enumerate(self.parts):
            if place and self._clock() - began >= BUDGET:
                give_back(self.work.relay, self.work.settings.name, self.job)
                break
            with self.work.capture(part):
                outcome = part.execute()
            became[outcome.status] += 1
            app_seconds += float(outcome.meta.get("app_seconds", 0.0))
            bytes_out += int(outcome.meta.get("bytes_out", 0))
            if outcome.failure is not None:
                failures.append(f"{part.errand.node}: {outcome.failure}")
        left = len(self.parts) - sum(became.values())
        words = [f"{count} {status}" for status, count in became.most_common()]
        return Outcome(
            ", ".join(words + ([f"{left} given back"] if left else [])),
            {"app_seconds": round(app_seconds, 4), "bytes_out": bytes_out, "done": sum(became.values())},
            failure="\n".join(failures) or None,
        )

    # -- the worker's parent process -----------------------------------------------------------------------------------

    def renew(self) -> Verdict:
        """Prolong the lease of the message under way, or hear that it is of no use any more.

        Which one that is, only the process that executes knows; but it takes them in order, so that it is the first
        that holds a claim. One that nobody holds is yet to come, or was refused when its turn came and freed since, so
        that the one under way may be behind it. A message that was settled by somebody else and has no held one behind
        it is either being executed in vain or about to be left: the second time it looks like that, the process has to
        go.
        """
        doubted: str | None = None
        unclaimed = False
        while self._open:
            for place, part in enumerate(self._open):
                e = part.errand
                outcome = claims.renew(
                    self.work.renewals, e.node, e.run, e.entry, e.message, e.token, lease=part.settings.lease
                )
                if outcome is Renew.STOPPED:
                    return Verdict.STOP
                if outcome in (Renew.OK, Renew.COMMITTED):
                    self._open = self._open[place + (outcome is Renew.COMMITTED) :]
                    doubted = None
                    if outcome is Renew.OK:
                        self._doubted = None
                        return Verdict.OK
                    break
                if outcome is Renew.UNCLAIMED:
                    unclaimed = True
                elif not unclaimed:
                    doubted = doubted or e.message
            else:
                return self._doubt(doubted)
        return Verdict.DONE

    def _doubt(self, message: str | None) -> Verdict:
        again = message is not None and message == self._doubted
        self._doubted = message
        return Verdict.STOP if again else Verdict.OK

    def died(self, cause: Cause) -> str:
        """Answer for the message that was under way, as on a node of its own; the others are dispatched anew."""
        return self._speak(lambda part: part.died(cause)) or cause.detail

    def released(self) -> str:
        """The worker shuts down: nothing counts as an attempt."""
        return self._speak(lambda part: part.released()) or "the worker shut down; its messages will be tried again"

    def _speak(self, answer: Callable[[ClientAppAssignment], str]) -> str:
        said = [answer(part) for part in self._held()]
        give_back(self.work.renewals, self.work.settings.name, self.job)
        return "\n".join(said)

    def _held(self) -> list[ClientAppAssignment]:
        relay = self.work.renewals
        with relay.errors(), relay.redis.pipeline(transaction=False) as pipe:
            for part in self.parts:
                pipe.hget(relay.keys.claims(part.errand.node), part.errand.message)
            found = pipe.execute()
        return [
            part
            for part, raw in zip(self.parts, found, strict=True)
            if raw is not None and text(raw).split("|")[1] == part.errand.token
        ]


def give_back(relay: Relay, host: str, job: str) -> None:
    """Tell the dispatcher that a job does no more. A hint: where it cannot be given, reconciliation finds it out."""
    with contextlib.suppress(*WAITED_FOR), relay.errors():
        relay.redis.xadd(relay.keys.inbox(host), {"kind": "wake", "job": job}, maxlen=1000)


__all__ = ["Batch", "RecentArrays", "VirtualWork", "give_back"]
