"""FedMedian: the median of what the nodes trained, coordinate by coordinate."""

from __future__ import annotations

import numpy as np

from fedq.apps.arrayrecord import ArrayRecord
from fedq.apps.metricrecord import MetricRecord
from fedq.apps.reals import Reals
from fedq.apps.strategy.folding import FoldedMetrics
from fedq.apps.strategy.gathering import Gathering
from fedq.apps.strategy.reply_store import ReplyStore


class FedMedian(Gathering):
    """FedMedian: D. Yin, Y. Chen, K. Ramchandran, P. Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal
    Statistical Rates", 2018, https://arxiv.org/abs/1803.01498, algorithm 1, option I.

    Each number of the model becomes the median of the replies' numbers at its place, of an even number of replies the
    mean of the middle two. Weights count for the metrics only. A complex number is taken as two real ones.

    Needs all replies of a round at once; for how memory stays bounded see `Gathering`. Nothing but the model goes from
    round to round. The arguments are those of `FedAvg`, and `memory_limit`.
    """

    def combine(self, store: ReplyStore, metrics: FoldedMetrics) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The median of each coordinate, and the metrics of all replies."""
        return store.combined(_median), metrics.result()


def _median(values: Reals) -> Reals:
    median: Reals = np.median(values, axis=0, overwrite_input=True)
    return median
