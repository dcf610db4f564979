"""SuperNode: the service at the data. Takes messages from its inbox, runs ClientApps as RQ jobs, commits their replies.

Importing this package imports nothing heavy, so that :func:`fedq.relay.threads.limit_threads` can be called before
NumPy is loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedq.apps.lazy import exports

if TYPE_CHECKING:
    from fedq.node.service import run_supernode, run_worker
    from fedq.node.settings import NodeSettings
    from fedq.node.trust import TrustPolicy
    from fedq.relay.threads import limit_threads

__all__ = ["NodeSettings", "TrustPolicy", "limit_threads", "run_supernode", "run_worker"]

__getattr__, __dir__ = exports(
    __name__,
    {
        ".service": ["run_supernode", "run_worker"],
        ".settings": ["NodeSettings"],
        ".trust": ["TrustPolicy"],
        "fedq.relay.threads": ["limit_threads"],
    },
)
