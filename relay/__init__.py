"""The SuperLink on Redis: streams, contexts, objects, runs, nodes, the Redis Grid and the submit API.

    with SuperLink.connect("redis://…") as link:
        run = link.submit(server_app, client_app, config={"num-rounds": 10})
        result = run.result(timeout=600)

Importing this package imports nothing heavy; names load what they need.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedq.apps.lazy import exports

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

__getattr__, __dir__ = exports(
    __name__,
    {
        ".bundles": ["BundleError", "LoadError"],
        ".events": ["Event"],
        ".nodes": ["NodeState"],
        ".project": ["AppNotFound", "ProjectError"],
        ".runs": ["RunInfo"],
        ".superlink": ["Run", "RunResult", "SuperLink"],
    },
    rest=".errors",
)
