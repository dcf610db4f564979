"""Result: what a strategy has made of a run."""

from __future__ import annotations

from dataclasses import dataclass, field

from fedq.apps.arrayrecord import ArrayRecord
from fedq.apps.history import History
from fedq.apps.metricrecord import MetricRecord
from fedq.apps.strategy.words import metrics_in_words, size_in_words


@dataclass
class Result:
    """The final arrays and the metrics of each round.

    Attributes:
        arrays: the global model after the last round.
        train_metrics_clientapp: round -> training metrics, averaged over the nodes.
        evaluate_metrics_clientapp: round -> evaluation metrics, averaged over the nodes.
        evaluate_metrics_serverapp: round -> what `evaluate_fn` returned; round 0 is the model before training.
    """

    arrays: ArrayRecord = field(default_factory=ArrayRecord)
    train_metrics_clientapp: dict[int, MetricRecord] = field(default_factory=dict)
    evaluate_metrics_clientapp: dict[int, MetricRecord] = field(default_factory=dict)
    evaluate_metrics_serverapp: dict[int, MetricRecord] = field(default_factory=dict)

    @property
    def history(self) -> History:
        """The metrics by round, to look at, to draw and to write to files. Made anew at each call."""
        return History().take(self)

    def __repr__(self) -> str:
        lines = [f"Result: {len(self.arrays)} arrays, {size_in_words(self.arrays.count_bytes())}"]
        for title, metrics in (
            ("train, nodes", self.train_metrics_clientapp),
            ("evaluate, nodes", self.evaluate_metrics_clientapp),
            ("evaluate, server", self.evaluate_metrics_serverapp),
        ):
            lines += [f"  {title}, round {number}: {metrics_in_words(metrics[number])}" for number in sorted(metrics)]
        return "\n".join(lines)
