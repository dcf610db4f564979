"""What strategies say in their log."""

from __future__ import annotations

from collections.abc import Mapping

from fedq.apps.grid import JSON

__all__ = ["metrics_in_words", "round_in_words", "size_in_words"]


def size_in_words(size: int) -> str:
    """A number of bytes, with three digits: ``812 bytes``, ``1.5 KiB``, ``48 MiB``."""
    value, unit = float(size), "bytes"
    for larger in ("KiB", "MiB", "GiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.3g} {unit}" if value < 1000 else f"{value:.0f} {unit}"


def metrics_in_words(metrics: Mapping[str, object]) -> str:
    """``loss=0.2395, num-examples=100``."""
    return ", ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}" for name, value in metrics.items()
    )


def round_in_words(event: Mapping[str, JSON]) -> str:
    """The event ``round`` as a line: what was measured, and how many replies were of use."""
    parts = [
        f"{part} {metrics_in_words(metrics)}"
        for part in ("train", "evaluate", "server")
        if isinstance(metrics := event.get(part), Mapping) and metrics
    ]
    counts = [f"{event[what]} {what}" for what in ("failures", "unanswered") if event[what]]
    parts.append(", ".join([f"{event['replies']} replies", *counts]))
    return f"round {event['round']} of {event['rounds']}: {'; '.join(parts)}"
