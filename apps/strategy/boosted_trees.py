"""XGBoost models in JSON, and how the trees of several become one model. XGBoost itself is not needed.

The format is that of ``Booster.save_raw("json")``; "Introduction to Model IO" in XGBoost's documentation describes it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from fedq.apps.errors import InconsistentReply


class BoostedTrees:
    """A model of boosted trees (booster ``gbtree``), to which those of others can be added.

    Args:
        data: the model as JSON.

    Raises:
        InconsistentReply: it is not such a model.
    """

    def __init__(self, data: bytes) -> None:
        try:
            self._json: dict[str, Any] = json.loads(data)
            self._model: dict[str, Any] = self._json["learner"]["gradient_booster"]["model"]
            count = int(self._model["gbtree_model_param"]["num_trees"])
            self.features = int(self._json["learner"].get("learner_model_param", {}).get("num_feature", 0))
            sizes = [len(self._model[name]) for name in ("trees", "tree_info")]
            ends = self._model["iteration_indptr"]
            consistent = sizes == [count, count] and ends[0] == 0 and ends[-1] == count and sorted(ends) == ends
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as exc:
            raise InconsistentReply(
                "its array is no XGBoost model of booster 'gbtree' in JSON; make it with "
                f'np.frombuffer(booster.save_raw("json"), dtype=np.uint8) ({type(exc).__name__}: {exc})'
            ) from exc
        if not consistent:
            raise InconsistentReply("its XGBoost model contradicts itself about the number of its trees")

    @property
    def count(self) -> int:
        """How many trees there are."""
        return len(self._model["trees"])

    def check(self, other: BoostedTrees) -> None:
        """Whether the trees of another model can be added.

        Raises:
            InconsistentReply: it was trained on another number of features.
        """
        if self.features != other.features:
            raise InconsistentReply(
                f"its XGBoost model has {other.features} features, the one that was sent has {self.features}"
            )

    def extend(self, others: Iterable[BoostedTrees]) -> None:
        """Add all trees of the others behind one's own, each boosting round of theirs as a round of this model.

        Trees are numbered anew; their class (``tree_info``) stays.
        """
        for other in others:
            first = self.count
            for place, tree in enumerate(other._model["trees"]):
                self._model["trees"].append({**tree, "id": first + place})
            self._model["tree_info"].extend(other._model["tree_info"])
            self._model["iteration_indptr"].extend(first + end for end in other._model["iteration_indptr"][1:])
            self._model["gbtree_model_param"]["num_trees"] = str(self.count)

    def to_bytes(self) -> bytes:
        """The model as JSON."""
        return json.dumps(self._json).encode()
