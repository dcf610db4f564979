"""Seeded sampling of nodes, whose state fits into a checkpoint."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

from fedq.apps.strategy.errors import CheckpointError


class Sampler:
    """Draws nodes without replacement. The same seed and the same nodes give the same draws.

    Args:
        seed: any integer.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._random = random.Random(seed)

    def sample(self, nodes: Sequence[str], size: int) -> list[str]:
        """`size` of the nodes, sorted. Of all nodes nothing is drawn, so that the state stays as it was.

        Nodes are sorted first: who connected when makes no difference.
        """
        if size >= len(nodes):
            return sorted(nodes)
        return sorted(self._random.sample(sorted(nodes), size))

    @property
    def state(self) -> str:
        """The state as text."""
        version, internal, gauss = self._random.getstate()
        return json.dumps([self.seed, version, list(internal), gauss])

    @state.setter
    def state(self, text: str) -> None:
        try:
            seed, version, internal, gauss = json.loads(text)
            self._random.setstate((version, tuple(internal), gauss))
        except (ValueError, TypeError) as exc:
            raise CheckpointError("the checkpoint holds no state of a sampler; start the run anew") from exc
        self.seed = seed
