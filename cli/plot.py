"""The convergence plot: accuracy and loss by round."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedq.cli.rounds import Round

ACCENT, MUTED, GRID = "#1f5fa8", "#8a8a8a", "#dddddd"


def draw(rounds: Sequence[Round], path: Path, *, title: str, alone: float | None = None) -> None:
    """Draw the rounds into a PNG. ``alone`` is the mean accuracy of models that nodes trained alone.

    Raises ModuleNotFoundError where matplotlib is not installed.
    """
    # No pyplot: it would look for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    series = [
        (name, [(r.number, value) for r in rounds if (value := getattr(r, name)) is not None])
        for name in ("accuracy", "loss")
    ]
    series = [(name, points) for name, points in series if points]
    if not series:
        first = next((name for r in rounds for name in r.metrics), None)
        if first is None:
            return
        series = [(first, [(r.number, r.metrics[first]) for r in rounds if first in r.metrics])]

    figure = Figure(figsize=(4.6 * len(series), 3.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, points) in zip(figure.subplots(1, len(series), squeeze=False)[0], series, strict=True):
        numbers, values = [number for number, _ in points], [value for _, value in points]
        axes.plot(numbers, values, color=ACCENT, marker="o", markersize=3, linewidth=1.6, label="federated")
        if name == "accuracy":
            if alone is not None:
                axes.axhline(alone, color=MUTED, linestyle="--", linewidth=1.2, label="trained alone (mean)")
                axes.legend(loc="lower right", frameon=False, fontsize=8)
            axes.set_ylim(top=1.0)
        elif min(values) >= 0:
            axes.set_ylim(bottom=0.0)
        axes.annotate(
            f"{values[-1]:.3f}",
            (numbers[-1], values[-1]),
            textcoords="offset points",
            xytext=(0, -14 if name == "accuracy" else 6),
            ha="right",
            fontsize=8,
            color=ACCENT,
        )
        axes.set_xlabel("round")
        axes.set_ylabel(name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(True, color=GRID, linewidth=0.6)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.suptitle(title, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
