"""What is kept of a Flower ServerApp from its start, so that it does the same again after an interruption."""

from __future__ import annotations

import random
import sys
from typing import Any

import numpy as np

from fedq.apps.configrecord import ConfigRecord
from fedq.apps.recorddict import RecordDict


class Memory:
    """A record in the ServerApp's Context: numbers of the nodes, and the states of Python's, NumPy's and PyTorch's
    global random number generators, as they were when main began for the first time."""

    NAME = "fedq.flower"

    def __init__(self, state: RecordDict) -> None:
        self._state = state

    @property
    def is_new(self) -> bool:
        """Whether nothing is kept yet."""
        return self.NAME not in self._state

    @property
    def nodes(self) -> dict[str, int]:
        """The numbers of the nodes by name."""
        if self.is_new:
            return {}
        record = self._state.config_records[self.NAME]
        return {key.removeprefix("node."): int(value) for key, value in record.items() if key.startswith("node.")}  # type: ignore[arg-type]

    def keep(self, nodes: dict[str, int]) -> None:
        """Write everything into the Context's state. Nothing is saved yet."""
        version, words, following = random.getstate()
        kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
        kept: dict[str, Any] = {f"node.{name}": number for name, number in nodes.items()}
        kept |= {"python": version, "following": repr(following), "numpy": str(kind), "position": int(position)}
        kept |= {"has-gauss": int(has_gauss), "cached": float(cached)}
        kept |= {"python-words": np.array(words, np.uint32).tobytes(), "numpy-words": np.asarray(keys).tobytes()}
        if (torch := sys.modules.get("torch")) is not None:
            kept["torch"] = torch.random.get_rng_state().numpy().tobytes()
        self._state[self.NAME] = ConfigRecord(kept)

    def restore(self) -> None:
        """Set the generators to what was kept."""
        record: Any = self._state.config_records[self.NAME]
        following = None if record["following"] == "None" else float(record["following"])
        words = tuple(int(word) for word in np.frombuffer(record["python-words"], np.uint32))
        random.setstate((record["python"], words, following))
        keys = np.frombuffer(record["numpy-words"], np.uint32)
        np.random.set_state((record["numpy"], keys, record["position"], record["has-gauss"], record["cached"]))
        if "torch" in record and (torch := sys.modules.get("torch")) is not None:
            torch.random.set_rng_state(torch.from_numpy(np.frombuffer(record["torch"], np.uint8).copy()))
