"""Runs a SuperNode or a worker with settings given as JSON: ``serve.py supernode '{"name": "clinic-a"}'``.

``"clock_off": 3600`` sets the clock of its processes an hour ahead; ``"budget": 60`` lets a job of virtual nodes begin
messages for a minute.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

if ahead := json.loads(sys.argv[2]).get("clock_off", 0):
    # Before anything is imported that takes the function for its own.
    real, real_ns = time.time, time.time_ns
    time.time = lambda: real() + ahead
    time.time_ns = lambda: real_ns() + int(ahead * 1e9)

from fedq.relay.threads import limit_threads

limit_threads()

from fedq.apps.errors import FedqError  # noqa: E402
from fedq.node import virtualjobs  # noqa: E402
from fedq.node.service import run_supernode, run_worker  # noqa: E402
from fedq.node.settings import NodeSettings  # noqa: E402
from fedq.node.trust import TrustPolicy  # noqa: E402


def main() -> int:
    what, text = sys.argv[1:]
    given = json.loads(text)
    given["cache_dir"] = Path(given["cache_dir"])
    given.pop("clock_off", None)
    virtualjobs.BUDGET = given.pop("budget", virtualjobs.BUDGET)
    given["trust"] = TrustPolicy.of(digests=given.pop("pinned", ()))
    try:
        return (run_supernode if what == "supernode" else run_worker)(NodeSettings(**given))
    except FedqError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
