"""What to measure, and how much of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ISOLATIONS = ("fork", "run", "inline")


@dataclass(frozen=True, slots=True)
class Options:
    """Chosen on the command line; what was not chosen is up to each part.

    Attributes:
        nodes, bytes, isolation: empty: those that the part is defined for.
        repetitions: counted ones, behind one that is not counted.
        small: a version that takes seconds, for checking the benchmark itself.
        rounds: of ``endurance``.
        seconds: of ``idle`` and of the heartbeats in ``nodes``.
        registered: nodes of ``nodes``.
        flower: a python with Flower installed; None makes an environment for it.
        say: tells people what goes on.
    """

    nodes: tuple[int, ...] = ()
    bytes: tuple[int, ...] = ()
    isolation: tuple[str, ...] = ()
    repetitions: int = 5
    small: bool = False
    rounds: int = 2000
    seconds: float = 30.0
    registered: int = 10_000
    messages: int = 2000
    flower: Path | None = None
    say: Callable[[str], None] = print

    def nodes_or(self, *standard: int) -> tuple[int, ...]:
        """The chosen numbers of nodes."""
        return self.nodes or ((2,) if self.small else standard)

    def bytes_or(self, *standard: int) -> tuple[int, ...]:
        """The chosen sizes."""
        return self.bytes or (
            tuple(sorted({min(standard), 1_000_000})) if self.small and len(standard) > 1 else standard
        )

    def isolation_or(self, *standard: str) -> tuple[str, ...]:
        """The chosen isolations."""
        return self.isolation or standard
