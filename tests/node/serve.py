"""Runs a SuperNode or a worker with settings given as JSON: ``serve.py supernode '{"name": "clinic-a"}'``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from fedq.relay.threads import limit_threads

limit_threads()

from fedq.apps.errors import FedqError  # noqa: E402
from fedq.node.service import run_supernode, run_worker  # noqa: E402
from fedq.node.settings import NodeSettings  # noqa: E402
from fedq.node.trust import TrustPolicy  # noqa: E402


def main() -> int:
    what, text = sys.argv[1:]
    given = json.loads(text)
    given["cache_dir"] = Path(given["cache_dir"])
    given["trust"] = TrustPolicy.of(digests=given.pop("pinned", ()))
    try:
        return (run_supernode if what == "supernode" else run_worker)(NodeSettings(**given))
    except FedqError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
