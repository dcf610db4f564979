"""``python -m fedq.cli.attached PID ARGS…``: a fedq command that never outlives process PID, which started it.

The demo starts its services this way: whatever ends the demo, SIGKILL included, ends them.
"""

from __future__ import annotations

import sys

from fedq.relay.jobs.processes import die_with_parent


def main() -> None:
    """Bind this process to its parent's life, then run the command."""
    die_with_parent(int(sys.argv[1]))
    from fedq.cli import main as fedq

    fedq(sys.argv[2:])


if __name__ == "__main__":
    main()
