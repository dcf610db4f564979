"""Node ids as Flower has them: integers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import sha256

from fedq.apps.errors import AppError
from fedq.apps.flower.installed import SERVER


def node_number(name: str) -> int:
    """The integer of a node, by its name alone: the same in every run, on both sides, after every restart.

    63 bits of the sha256 of the name, never one of the numbers that Flower keeps for itself (0 and 1).
    """
    number = int.from_bytes(sha256(f"fedq node {name}".encode()).digest()[:8], "big") >> 1
    return number if number > SERVER else number + SERVER + 1


class NodeIds:
    """The nodes of a run by name and by number.

    A number follows from the name, so that a node knows its own. Two names with one number, which the names of a
    federation of a million nodes have with a probability of one in ten million, are refused.
    """

    def __init__(self, known: Mapping[str, int] | None = None) -> None:
        self._numbers: dict[str, int] = {}
        self._names: dict[int, str] = {}
        for name, number in (known or {}).items():
            self._add(name, number)

    def number(self, name: str) -> int:
        """The integer of a node. Raises AppError if another node of the run has it."""
        if name not in self._numbers:
            self._add(name, node_number(name))
        return self._numbers[name]

    def numbers(self, names: Iterable[str]) -> list[int]:
        """The integers of nodes, in their order."""
        return [self.number(name) for name in names]

    def name(self, number: int) -> str | None:
        """The node with that integer; None if it is not known here."""
        return self._names.get(number)

    @property
    def known(self) -> dict[str, int]:
        """All nodes so far."""
        return dict(self._numbers)

    def _add(self, name: str, number: int) -> None:
        other = self._names.setdefault(number, name)
        if other != name:
            raise AppError(
                f"the nodes {other!r} and {name!r} have the same number {number}, by which a Flower app would address "
                "them: give one of them another name",
                node_id=name,
            )
        self._numbers[name] = number
