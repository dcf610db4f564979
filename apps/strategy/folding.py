"""What FedAvg and its kin take of a reply, and the metrics of those that were usable."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

from fedq.apps.arrayrecord import ArrayRecord
from fedq.apps.configrecord import ConfigRecord
from fedq.apps.errors import InconsistentReply
from fedq.apps.message import Message
from fedq.apps.metricrecord import MetricRecord
from fedq.apps.recorddict import RecordDict
from fedq.apps.strategy.averaging import MetricAverage
from fedq.apps.strategy.errors import CheckpointError
from fedq.apps.strategy.partial import read_json

log = logging.getLogger(__name__)

MetricsAggregation = Callable[[list[RecordDict], str], MetricRecord]
ReplyKey = tuple[str, str]
"""Node and message id: what orders replies, however they arrived."""

_LARGEST_TERM = 1e300  # so that a sum of weighted metrics stays within float64


@dataclass(frozen=True)
class UsableReply:
    """A reply with exactly one MetricRecord, a positive finite weight and metrics that can be averaged."""

    key: ReplyKey
    content: RecordDict
    metrics: MetricRecord
    weight: float

    @classmethod
    def of(cls, reply: Message, weighted_by_key: str) -> UsableReply:
        """The reply, which has content, after these checks.

        Raises:
            InconsistentReply: it does not pass one of them.
        """
        metrics, weight = _checked(reply.content, weighted_by_key)
        return cls((reply.metadata.src_node_id, reply.metadata.reply_to_message_id), reply.content, metrics, weight)

    @property
    def arrays(self) -> ArrayRecord:
        """The one ArrayRecord of the reply.

        Raises:
            InconsistentReply: it has none, or several.
        """
        records = self.content.array_records
        if len(records) != 1:
            raise InconsistentReply(f"it has {len(records)} ArrayRecords instead of one")
        (arrays,) = records.values()
        return arrays


class FoldedMetrics:
    """The metrics of usable replies. The arrays of a reply are not kept.

    Args:
        weighted_by_key: name of the weight among the metrics.
        aggregate: see `FedAvg`; None: the weighted average.
    """

    def __init__(self, weighted_by_key: str, aggregate: MetricsAggregation | None) -> None:
        self._weighted_by_key = weighted_by_key
        self._aggregate = aggregate
        self._kept: list[tuple[ReplyKey, MetricRecord, float, RecordDict | None]] = []

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, reply: UsableReply) -> None:
        """Add the metrics of a reply."""
        small = None
        if self._aggregate is not None:
            small = RecordDict({**reply.content.metric_records, **reply.content.config_records})
        self._kept.append((reply.key, reply.metrics, reply.weight, small))

    def result(self, only: Collection[int] | None = None) -> MetricRecord | None:
        """The metrics of all replies as one, whatever the order of arrival; None when there is none.

        Args:
            only: take those alone that were added at these places, counted from 0.
        """
        chosen = (item for place, item in enumerate(self._kept) if only is None or place in only)
        kept = sorted(chosen, key=lambda item: item[0])
        if not kept:
            return None
        if self._aggregate is not None:
            return self._aggregate([small for *_, small in kept if small is not None], self._weighted_by_key)
        average = MetricAverage(self._weighted_by_key)
        for _, metrics, weight, _ in kept:
            average.add(metrics, weight)
        if partly := average.partly_reported:
            log.warning("not all replies report %s alike; averaged over those that do", ", ".join(partly))
        return average.result()

    def save(self) -> RecordDict:
        """What was added so far, for a checkpoint."""
        kept = RecordDict()
        told = []
        for place, (key, metrics, weight, small) in enumerate(self._kept):
            told.append([*key, weight, None if small is None else list(small)])
            kept[f"{place}"] = metrics
            for name, record in (small or {}).items():
                kept[f"{place}.{name}"] = record
        kept["metrics"] = ConfigRecord({"json": json.dumps(told)})
        return kept

    def load(self, kept: RecordDict) -> None:
        """Take up what `save` gave.

        Raises:
            CheckpointError: it does not read.
        """
        try:
            for place, (node, message_id, weight, names) in enumerate(read_json(kept, "metrics")):
                small = None if names is None else RecordDict({name: kept[f"{place}.{name}"] for name in names})
                metrics = kept.metric_records[f"{place}"]
                self._kept.append(((str(node), str(message_id)), metrics, float(weight), small))
        except (KeyError, TypeError, ValueError) as exc:
            raise CheckpointError(f"the checkpoint holds no metrics of replies ({exc!r}); start the run anew") from exc


def number(value: float) -> float:
    """The value as a float; infinite if it is an integer beyond float64."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _checked(content: RecordDict, weighted_by_key: str) -> tuple[MetricRecord, float]:
    records = content.metric_records
    if len(records) != 1:
        raise InconsistentReply(f"it has {len(records)} MetricRecords instead of one")
    (metrics,) = records.values()
    if weighted_by_key not in metrics:
        raise InconsistentReply(f"its MetricRecord lacks {weighted_by_key!r}, by which replies are weighted")
    value = metrics[weighted_by_key]
    if isinstance(value, list):
        raise InconsistentReply(f"its {weighted_by_key!r} is a list, where one number is needed")
    weight = number(value)
    if not (math.isfinite(weight) and weight > 0.0):
        raise InconsistentReply(f"its {weighted_by_key!r} is {value}, where a number above zero is needed")
    for name, metric in metrics.items():
        for item in metric if isinstance(metric, list) else (metric,):
            if not abs(number(item)) * weight < _LARGEST_TERM:
                raise InconsistentReply(f"its metric {name!r} is {item}, which cannot be averaged")
    return metrics, weight
