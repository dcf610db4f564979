"""FedTrimmedAvg: the mean of what the nodes trained without the extremes, coordinate by coordinate."""

from __future__ import annotations

import logging
from typing import Unpack

import numpy as np

from fedq.apps.arrayrecord import ArrayRecord
from fedq.apps.metricrecord import MetricRecord
from fedq.apps.reals import Reals
from fedq.apps.strategy.folding import FoldedMetrics, MetricsAggregation
from fedq.apps.strategy.gathering import Gathering, GatherOptions
from fedq.apps.strategy.reply_store import ReplyStore

log = logging.getLogger(__name__)


class FedTrimmedAvg(Gathering):
    """The trimmed mean: D. Yin, Y. Chen, K. Ramchandran, P. Bartlett, "Byzantine-Robust Distributed Learning: Towards
    Optimal Statistical Rates", 2018, https://arxiv.org/abs/1803.01498, algorithm 1, option II.

    Of the n replies' numbers at each place of the model the ``int(beta * n)`` smallest and as many of the largest are
    left out; the plain mean of the others is the new number. Weights count for the metrics only. A complex number is
    taken as two real ones.

    Needs all replies of a round at once; for how memory stays bounded see `Gathering`. Nothing but the model goes from
    round to round.

    Args:
        beta: the share cut off at either end, at least 0 and below 0.5.
        others: as in `FedAvg`, and `memory_limit`.
    """

    def __init__(
        self,
        fraction_train: float = 1.0,
        fraction_evaluate: float = 1.0,
        min_train_nodes: int = 2,
        min_evaluate_nodes: int = 2,
        min_available_nodes: int = 2,
        weighted_by_key: str = "num-examples",
        arrayrecord_key: str = "arrays",
        configrecord_key: str = "config",
        train_metrics_aggr_fn: MetricsAggregation | None = None,
        evaluate_metrics_aggr_fn: MetricsAggregation | None = None,
        beta: float = 0.2,
        **options: Unpack[GatherOptions],
    ) -> None:
        super().__init__(
            fraction_train=fraction_train,
            fraction_evaluate=fraction_evaluate,
            min_train_nodes=min_train_nodes,
            min_evaluate_nodes=min_evaluate_nodes,
            min_available_nodes=min_available_nodes,
            weighted_by_key=weighted_by_key,
            arrayrecord_key=arrayrecord_key,
            configrecord_key=configrecord_key,
            train_metrics_aggr_fn=train_metrics_aggr_fn,
            evaluate_metrics_aggr_fn=evaluate_metrics_aggr_fn,
            **options,
        )
        if not 0.0 <= beta < 0.5:
            raise ValueError(f"beta must be at least 0 and below 0.5, not {beta}")
        self.beta = beta

    def summary(self) -> None:
        """Log how the strategy is set up."""
        log.info("FedTrimmedAvg: cuts off %g at either end", self.beta)
        super().summary()

    def combine(self, store: ReplyStore, metrics: FoldedMetrics) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The trimmed mean of each coordinate, and the metrics of all replies."""
        cut = int(self.beta * len(store))

        def trimmed_mean(values: Reals) -> Reals:
            values.sort(axis=0)
            mean: Reals = values[cut : len(values) - cut].mean(axis=0)
            return mean

        with np.errstate(over="ignore", invalid="ignore"):
            return store.combined(trimmed_mean), metrics.result()
