"""The SuperLink on Redis: streams, contexts, objects, runs, nodes, the Redis Grid and the submit API.

    with SuperLink.connect("redis://…") as link:
        run = link.submit(server_app, client_app, config={"num-rounds": 10})
        result = run.result(timeout=600)

Importing this package imports nothing heavy; names load what they need.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedq.relay.bundles import BundleError, LoadError
    from fedq.relay.errors import (
        Fenced,
        JournalMismatch,
        NodeTaken,
        NodeUnknown,
        ObjectCorrupt,
        ObjectMissing,
        RelayAuthError,
        RelayCorrupt,
        RelayError,
        RelayFull,
        RelayMisconfigured,
        RelayReadOnly,
        RelayUnavailable,
        RevisionLost,
        RunFailed,
        RunNotFound,
        RunOver,
        RunStopped,
        RunTimeout,
    )
    from fedq.relay.events import Event
    from fedq.relay.nodes import NodeState
    from fedq.relay.project import AppNotFound, ProjectError
    from fedq.relay.runs import RunInfo
    from fedq.relay.superlink import Run, RunResult, SuperLink

__all__ = [
    "AppNotFound",
    "BundleError",
    "Event",
    "Fenced",
    "JournalMismatch",
    "LoadError",
    "NodeState",
    "NodeTaken",
    "NodeUnknown",
    "ObjectCorrupt",
    "ObjectMissing",
    "ProjectError",
    "RelayAuthError",
    "RelayCorrupt",
    "RelayError",
    "RelayFull",
    "RelayMisconfigured",
    "RelayReadOnly",
    "RelayUnavailable",
    "RevisionLost",
    "Run",
    "RunFailed",
    "RunInfo",
    "RunNotFound",
    "RunOver",
    "RunResult",
    "RunStopped",
    "RunTimeout",
    "SuperLink",
]

_HOMES = {
    "AppNotFound": "project",
    "BundleError": "bundles",
    "Event": "events",
    "LoadError": "bundles",
    "NodeState": "nodes",
    "ProjectError": "project",
    "Run": "superlink",
    "RunInfo": "runs",
    "RunResult": "superlink",
    "SuperLink": "superlink",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
