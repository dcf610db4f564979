"""A History as a picture."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedq.apps.extras import require
from fedq.apps.files import write_whole
from fedq.apps.history.round import NO_METRIC

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from fedq.apps.history.history import History

MOST_PANELS = 4
# The part whose line is the strongest comes first.
LINES = {
    "server": ("server", "#1f5fa8"),
    "evaluate": ("nodes, evaluation", "#d1802f"),
    "train": ("nodes, training", "#5d9b5d"),
    "app": ("app", "#7d5ba6"),
}
MUTED, GRID = "#8a8a8a", "#dddddd"


def draw(
    history: History,
    path: str | os.PathLike[str] | None,
    *,
    metrics: Sequence[str] | None,
    title: str | None,
    baselines: Mapping[str, float | tuple[float, str]],
) -> Figure:
    """See `History.plot`."""
    # No pyplot: it would look for a display, and keep the figure.
    require("matplotlib", "plot", "plots need matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = panels_of(history, metrics)
    figure = Figure(figsize=(4.6 * max(1, len(panels)), 3.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, name in zip(figure.subplots(1, max(1, len(panels)), squeeze=False)[0], panels or [""], strict=True):
        _panel(axes, history, name, baselines.get(name))
    if title:
        figure.suptitle(title, fontsize=10)
    if path is not None:
        form = Path(path).suffix[1:] or "png"
        write_whole(path, lambda file: figure.savefig(file, format=form))
    return figure


def panels_of(history: History, wanted: Sequence[str] | None) -> list[str]:
    """The metrics to draw, without their parts."""
    names = dict.fromkeys(name.partition("/")[2] for name in history.names)
    if wanted is not None:
        return list(wanted)

    def order(name: str) -> int:
        return 0 if "acc" in name.lower() else 1 if "loss" in name.lower() else 2

    # A single point draws no line; it is shown only where there is nothing else.
    several = [name for name in names if any(len(history.series(f"{part}/{name}")[0]) > 1 for part in LINES)]
    return sorted((name for name in several or names if name not in NO_METRIC), key=order)[:MOST_PANELS]


def _panel(axes: Axes, history: History, name: str, baseline: float | tuple[float, str] | None) -> None:
    from matplotlib.ticker import MaxNLocator

    everything: list[float] = []
    for part, (label, colour) in LINES.items():
        steps, values = history.series(f"{part}/{name}")
        if not steps:
            continue
        axes.plot(steps, values, color=colour, marker="o", markersize=3, linewidth=1.6, label=label)
        if not everything and math.isfinite(values[-1]):
            _annotate(axes, steps[-1], values[-1], colour, below="acc" in name.lower())
        everything += [value for value in values if math.isfinite(value)]
    if baseline is not None:
        value, label = baseline if isinstance(baseline, tuple) else (baseline, "for comparison")
        axes.axhline(value, color=MUTED, linestyle="--", linewidth=1.2, label=label)
        everything.append(value)
    if everything:
        axes.legend(frameon=False, fontsize=8)
        if "acc" in name.lower() and max(everything) <= 1.0:
            axes.set_ylim(top=1.0)
        elif min(everything) >= 0 and "loss" in name.lower():
            axes.set_ylim(bottom=0.0)
    axes.set_xlabel("round")
    axes.set_ylabel(name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(True, color=GRID, linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _annotate(axes: Any, step: int, value: float, colour: str, *, below: bool) -> None:
    axes.annotate(
        f"{value:.3f}",
        (step, value),
        textcoords="offset points",
        xytext=(0, -14 if below else 6),
        ha="right",
        fontsize=8,
        color=colour,
    )
