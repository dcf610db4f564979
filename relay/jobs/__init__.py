"""Jobs: the one RQ job class, the worker and the supervisor that ServerApps and ClientApps share."""

from fedq.relay.jobs.child import FATAL, ChildContext, ChildSpec, Fatal
from fedq.relay.jobs.job import TASK, FedqJob, FedqQueue, ForeignJob, enqueue, fetch, perform
from fedq.relay.jobs.supervisor import Backoff, Supervisor
from fedq.relay.jobs.watch import Timing
from fedq.relay.jobs.work import (
    Assignment,
    Cause,
    CauseKind,
    Isolation,
    Outcome,
    Parent,
    Verdict,
    Work,
    app_finished,
    app_started,
    parent,
)
from fedq.relay.jobs.worker import AppWorker, worker_name

__all__ = [
    "FATAL",
    "TASK",
    "AppWorker",
    "Assignment",
    "Backoff",
    "Cause",
    "CauseKind",
    "ChildContext",
    "ChildSpec",
    "Fatal",
    "FedqJob",
    "FedqQueue",
    "ForeignJob",
    "Isolation",
    "Outcome",
    "Parent",
    "Supervisor",
    "Timing",
    "Verdict",
    "Work",
    "app_finished",
    "app_started",
    "enqueue",
    "fetch",
    "parent",
    "perform",
    "worker_name",
]
