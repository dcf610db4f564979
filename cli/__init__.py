"""The command line: the only place that prints.

``main`` is the entry point of the ``fedq`` script. Commands are loaded when they are called, so that ``fedq --help``
and shell completion answer at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

__all__ = ["main"]


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit: 0 done, 1 what was wanted did not happen, 2 it was asked for wrongly, 130 interrupted.

    ``args`` are the words after the program's name (default: those of the process).
    """
    from fedq.cli.group import fedq
    from fedq.cli.problem import run_command

    raise SystemExit(run_command(fedq, args))
