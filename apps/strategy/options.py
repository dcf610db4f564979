"""The options that FedAvg has beyond Flower's, which its subclasses take by name too."""

from __future__ import annotations

from typing import TypedDict

from fedq.apps.grid import OnOffline


class RoundOptions(TypedDict, total=False):
    """Keyword arguments that go to `FedAvg` as they are; their meaning is told there."""

    min_replies: int | None
    grace: float
    on_offline: OnOffline
    seed: int | None
    node_timeout: float | None
    max_failed_rounds: int | None
    reply_budget: int | None
