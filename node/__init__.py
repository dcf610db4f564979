"""SuperNode: the service at the data. Takes messages from its inbox, runs ClientApps as RQ jobs, commits their replies.

Importing this package imports nothing heavy, so that :func:`fedq.relay.threads.limit_threads` can be called before
NumPy is loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedq.node.service import run_supernode, run_worker
    from fedq.node.settings import NodeSettings
    from fedq.node.trust import TrustPolicy
    from fedq.relay.threads import limit_threads

__all__ = ["NodeSettings", "TrustPolicy", "limit_threads", "run_supernode", "run_worker"]

_HOMES = {
    "NodeSettings": "fedq.node.settings",
    "TrustPolicy": "fedq.node.trust",
    "limit_threads": "fedq.relay.threads",
    "run_supernode": "fedq.node.service",
    "run_worker": "fedq.node.service",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
