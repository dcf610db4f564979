"""Named numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from fedq.apps.scalars import check_values
from fedq.apps.typeddict import TypedDict
from fedq.apps.typing import MetricRecordValues

__all__ = ["MetricRecord"]


class MetricRecord(TypedDict[str, MetricRecordValues]):
    """A mapping of names to int, float, or a list of one of them::

        MetricRecord({"accuracy": 0.94, "losses": [0.9, 0.5], "num-examples": 120})

    Parameters
    ----------
    metric_dict
        What to start with.
    keep_input
        If False, `metric_dict` is emptied on the way.

    Raises TypeError for other keys and values: bool is none of them, and of NumPy's scalars only float64 is.
    For long lists take an ArrayRecord.
    """

    __slots__ = ()

    def __init__(self, metric_dict: dict[str, MetricRecordValues] | None = None, keep_input: bool = True) -> None:
        super().__init__()
        if metric_dict:
            if not isinstance(metric_dict, Mapping):
                raise TypeError(f"a MetricRecord is made of a dict, not of {type(metric_dict).__name__}")
            for key in list(metric_dict):
                self[key] = metric_dict[key]
                if not keep_input:
                    del metric_dict[key]

    def _check_value(self, key: Any, value: Any) -> None:
        check_values(key, value, (int, float), False, "int, float or lists of one of them", "MetricRecord")

    def count_bytes(self) -> int:
        """Size in bytes: 8 for each number, and the lengths of the names."""
        return sum(
            len(key) + 8 * (len(cast("list[Any]", value)) if isinstance(value, list) else 1)
            for key, value in self._data.items()
        )
