"""What a worker is given to do: the contract between the worker and those who write ServerApp and ClientApp jobs.

A :class:`Work` turns a job into an :class:`Assignment`. The worker's parent process makes the assignment (and draws its
token), renews it and speaks for it when the process that executes it dies; that process, or the worker itself under
``inline``, executes it::

    worker (parent)                                 child (fork, run) or the worker itself (inline)
    ---------------                                 ----------------------------------------------
    work.assignment(job)
    description            --- pipe -->             work.rebuild(description)
    assignment.ahead()     --- pipe -->             assignment.execute(): claim, run the app, commit
    assignment.answer()    <-- pipe -->             parent().ask(), instead of a connection of its own
    assignment.renew(), each second
    assignment.died() if the child died             outcome, back over a pipe
    RQ's own bookkeeping
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from fedq.relay.jobs.job import FedqJob

__all__ = [
    "Assignment",
    "Cause",
    "CauseKind",
    "Isolation",
    "Outcome",
    "Parent",
    "Stage",
    "Verdict",
    "Work",
    "app_finished",
    "app_started",
    "bind_parent",
    "bind_stage",
    "parent",
]


class Isolation(StrEnum):
    """Where an assignment is executed."""

    FORK = "fork"
    """In a fresh process for each job."""
    RUN = "run"
    """In a process kept for the assignments of one group (a run), one per group and worker."""
    INLINE = "inline"
    """In the worker's own process; a side process renews and enforces the time limit."""


class Verdict(StrEnum):
    """What a renewal has learned."""

    OK = "ok"
    """Go on (also when nothing is claimed yet, or the server did not answer)."""
    STOP = "stop"
    """Stopped, cancelled or superseded: kill now, there is nothing to answer."""
    DONE = "done"
    """Committed: the answer is there, only the process has not ended yet."""


class CauseKind(StrEnum):
    """Why the process that executed an assignment ended without an outcome."""

    SIGNAL = "signal"
    """A signal that the worker did not send (a crash, the kernel's memory killer, an operator)."""
    EXIT = "exit"
    """It exited, or raised what ``execute`` let through."""
    TIME_LIMIT = "time-limit"
    """The worker killed it at its time limit."""
    STOPPED = "stopped"
    """The worker killed it because a renewal said so, or because a person stopped the job."""


@dataclass(frozen=True, slots=True)
class Cause:
    """How the process ended: ``detail`` is one line for people; ``traceback`` is there if Python raised."""

    kind: CauseKind
    detail: str
    traceback: str | None = None
    code: int | None = None
    """The signal's number or the exit status."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What ``execute`` returns.

    Attributes:
        status: one word or two, shown as the job's ``outcome`` (``committed``, ``error 2``, ``superseded``, …).
        meta: JSON values that are added to the job's ``meta``.
        failure: if not None the job is shown as failed, with this text (a traceback) as its ``exc_info``. The message
            is answered all the same; this is for whoever looks at the dashboard.
        description: replaces the job's description if not None.
    """

    status: str
    meta: Mapping[str, Any] = field(default_factory=dict)
    failure: str | None = None
    description: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The outcome as a JSON object, for the pipe."""
        return {
            "status": self.status,
            "meta": dict(self.meta),
            "failure": self.failure,
            "description": self.description,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Outcome:
        """The inverse of :meth:`to_json`."""
        return cls(data["status"], data["meta"], data["failure"], data["description"])


@runtime_checkable
class Assignment(Protocol):
    """One job, ready to be executed. ``execute`` runs in the child; the other methods in the parent."""

    run_id: int
    kind: str
    """``clientapp`` or ``serverapp``."""
    time_limit: float | None
    """Seconds that the app may take, None for no limit."""
    group: str
    """The run's id: ``run`` isolation keeps one process per group."""

    def describe(self) -> dict[str, Any]:
        """JSON from which :meth:`Work.rebuild` makes an equal assignment (same token) in another process."""

    def execute(self) -> Outcome:
        """Claim, run the app, commit. Called once, in the child (or inline).

        Errors of the app are answered inside and belong into the outcome; an exception that leaves this method counts
        as the death of the process (``CauseKind.EXIT``).
        """
        ...

    def ahead(self) -> Any:
        """What the parent of a fresh process does for it on its own connection while that comes to life: plain values,
        which the child finds in :meth:`Parent.ahead`. None: nothing, or it could not; the child does it itself.

        Must not raise, nor wait for the server longer than a few seconds.
        """
        return None

    def answer(self, request: Any) -> Any:
        """Do what the child of :meth:`ahead` asks for, on the parent's connection. None: the child has to do it itself,
        whatever the parent may have done of it already.

        Must not raise, nor wait for the server longer than a few seconds.
        """
        return None

    def renew(self) -> Verdict:
        """Prolong the lease. Called about every second from a thread of the parent, on a connection of its own.

        Must not wait for the server longer than a few seconds. An exception counts as ``Verdict.OK``.
        """
        ...

    def died(self, cause: Cause) -> str:
        """The process ended without an outcome: answer with an error, or free the claim for another try.

        Never called while :meth:`renew` is running. Returns a text for the job's ``exc_info``. If it raises
        RelayUnavailable, it is called again once the server is back.
        """
        ...

    def released(self) -> str:
        """The worker shuts down and has killed the process: free the claim without counting the attempt.

        Returns a text for the job's ``exc_info``.
        """
        ...


@runtime_checkable
class Work(Protocol):
    """What a worker works on. Subclass it: only :meth:`assignment` has no default."""

    def assignment(self, job: FedqJob) -> Assignment:
        """Make the assignment for a job and draw its token. Runs in the worker's process, before any fork.

        Raises whatever is wrong with the job's arguments; the job is then recorded as failed with that error.
        """
        ...

    def rebuild(self, description: Mapping[str, Any]) -> Assignment:
        """The assignment described by :meth:`Assignment.describe`, in another process.

        Needed for ``run`` and ``inline``; both call it in processes forked from the worker.
        """
        raise NotImplementedError(f"{type(self).__name__} does not support this isolation: it has no rebuild()")

    def alive(self, group: str) -> bool:
        """Whether a kept process is still of use to ``group``. Asked at most once a second, only while one is idle."""
        return True

    def capture(self, assignment: Assignment) -> AbstractContextManager[object]:
        """Surrounds ``execute`` where it runs: redirect output and logging here."""
        return contextlib.nullcontext()

    def preload(self) -> Iterator[object]:
        """Load and do what each process forked for an assignment would otherwise load and do for itself; each step
        takes some milliseconds. Only under ``fork``, in the process that they are forked from, when a second one is
        wanted.
        """
        yield from ()

    def forked(self) -> None:
        """Called first in every process forked from the worker: drop inherited connections here."""


# -- what the parent does for its child ------------------------------------------------------------------------------


class Parent(Protocol):
    """The worker, as the process sees it that it has forked for one job. A connection of its own would cost that
    process more than a small message: its parent's is there already."""

    def ahead(self) -> Any:
        """What :meth:`Assignment.ahead` has come to; None after the first call."""

    def ask(self, request: Any) -> Any:
        """What :meth:`Assignment.answer` says to plain values. None: do it yourself."""


_parent: Parent | None = None


def bind_parent(parent: Parent | None) -> None:
    """Name the parent of the process that executes (the worker's code does this)."""
    global _parent
    _parent = parent


def parent() -> Parent | None:
    """The worker, if this process is one that was forked for a single job."""
    return _parent


# -- the clock of the time limit --------------------------------------------------------------------------------------


class Stage(StrEnum):
    """Where an execution stands, as far as the time limit is concerned."""

    STARTED = "started"
    FINISHED = "finished"


_announce: Callable[[Stage], None] | None = None


def bind_stage(announce: Callable[[Stage], None] | None) -> None:
    """Name who hears of :func:`app_started` and :func:`app_finished` in this process (the worker does this)."""
    global _announce
    _announce = announce


def app_started() -> None:
    """Called by ``execute`` right before the app, and before its code is loaded: the time limit counts from here.

    What does not come here within the limit is killed as well, and counts as lost: the app is not to blame.
    """
    if _announce is not None:
        _announce(Stage.STARTED)


def app_finished() -> None:
    """Called by ``execute`` when the app has returned: the time limit is over.

    What is left, uploading and committing, may have to outlast an outage of the server; it ends when a renewal says
    that the message is settled some other way.
    """
    if _announce is not None:
        _announce(Stage.FINISHED)
