"""One figure beside its floor: a row of the table and of the JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

Side = Literal["<=", ">="]


@dataclass(frozen=True, slots=True)
class Goal:
    """What a figure is to reach: ``ratio`` (to its floor) or ``median`` (by itself), at most or at least ``limit``."""

    measure: Literal["ratio", "median"]
    side: Side
    limit: float

    def met(self, row: Row) -> bool | None:
        """Whether ``row`` reaches it; None if there is nothing to tell it by."""
        value = row.ratio if self.measure == "ratio" else row.median
        if value is None:
            return None
        return value <= self.limit if self.side == "<=" else value >= self.limit


@dataclass(slots=True)
class Row:
    """One figure.

    Attributes:
        part: the part of the benchmark.
        what: what is measured, where a part measures several things.
        isolation: ``fork``, ``run``, ``inline``, or how a peer calls its own.
        nodes: how many nodes.
        bytes: size of the payload.
        samples: the counted repetitions.
        floors: what it is compared with, taken in turn with the samples; or one value for all.
        floor_is: what that is.
        unit: of samples and floors: ``s``, ``messages/s``, ``bytes``, ``cores``, ``commands`` or ``round trips``.
        goal: what is to be reached.
        more: further figures about the same work, by name.
    """

    part: str
    what: str
    isolation: str
    nodes: int
    bytes: int
    samples: Sequence[float]
    floors: Sequence[float] = ()
    floor_is: str = ""
    unit: str = "s"
    goal: Goal | None = None
    more: dict[str, float] = field(default_factory=dict)

    @property
    def median(self) -> float:
        """Median of the samples."""
        return median(self.samples)

    @property
    def floor(self) -> float | None:
        """Median of the floors."""
        return median(self.floors) if self.floors else None

    @property
    def ratio(self) -> float | None:
        """Figure by floor: the median over the repetitions, each by the floor that was taken right beside it.

        A machine that others use as well changes its pace within minutes; what was measured at the same time is not
        touched by that.
        """
        if not self.floors or not all(self.floors):
            return None
        if len(self.floors) != len(self.samples):
            floor = self.floor
            return self.median / floor if floor else None
        return median(sample / floor for sample, floor in zip(self.samples, self.floors, strict=True))

    def as_json(self) -> dict[str, Any]:
        """The object in the JSON file."""
        return {
            "part": self.part,
            "what": self.what,
            "isolation": self.isolation,
            "nodes": self.nodes,
            "bytes": self.bytes,
            "median": float(self.median),
            "min": float(min(self.samples)),
            "max": float(max(self.samples)),
            "floor": self.floor,
            "floor_is": self.floor_is or None,
            "ratio": self.ratio,
            "unit": self.unit,
            "repetitions": len(self.samples),
            "goal": f"{self.goal.measure} {self.goal.side} {self.goal.limit:g}" if self.goal else None,
            "met": self.goal.met(self) if self.goal else None,
            **self.more,
        }


def shown(value: float | None, unit: str) -> str:
    """A number for people: three digits, and a unit that fits."""
    if value is None or math.isnan(value):
        return "–"
    if unit == "s":
        return f"{value * 1000:.3g} ms" if value < 0.9995 else f"{value:.3g} s"
    if unit == "bytes":
        for size, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "KB")):
            if abs(value) >= size:
                return f"{value / size:.3g} {name}"
        return f"{value:.0f} B"
    short = {"messages/s": " /s", "cores": " cores"}.get(unit, "")
    return f"{value:,.0f}{short}" if abs(value) >= 100 else f"{value:.3g}{short}"


def size(nbytes: int) -> str:
    """A payload's size."""
    return shown(float(nbytes), "bytes") if nbytes else ""
