"""MultiKrum: the average of the replies that lie nearest to their neighbours."""

from __future__ import annotations

import logging
from typing import Unpack

from fedq.apps.arrayrecord import ArrayRecord
from fedq.apps.metricrecord import MetricRecord
from fedq.apps.strategy.averaging import ArrayAverage
from fedq.apps.strategy.folding import FoldedMetrics, MetricsAggregation, UsableReply
from fedq.apps.strategy.gathering import Gathering, GatherOptions
from fedq.apps.strategy.krum_scores import enough, krum_scores, lowest
from fedq.apps.strategy.reply_store import ReplyStore

log = logging.getLogger(__name__)


class MultiKrum(Gathering):
    """Multi-Krum: P. Blanchard, E. M. El Mhamdi, R. Guerraoui, J. Stainer, "Machine Learning with Adversaries:
    Byzantine Tolerant Gradient Descent", 2017, https://arxiv.org/abs/1703.02757, sections 4 and 5.

    With n replies, f of them possibly malicious, the score of a reply is the sum of its squared distances to the
    ``n - f - 2`` nearest others. The replies of the lowest scores are averaged, weighted by `weighted_by_key` as in
    Flower; the paper weights them equally, and so does this with equal weights. The metrics are those of the replies
    chosen. Of equal scores that of the node whose name comes first is lower.

    Needs all replies of a round at once; for how memory stays bounded see `Gathering`. Distances take
    ``n ** 2 * size / 2`` operations. Nothing but the model goes from round to round.

    Args:
        num_malicious_nodes: f. The paper's guarantee needs ``n > 2 * f + 2``; with fewer replies a warning is logged.
        num_nodes_to_select: how many replies are averaged.
        others: as in `FedAvg`, and `memory_limit`.
    """

    def __init__(
        self,
        fraction_train: float = 1.0,
        fraction_evaluate: float = 1.0,
        min_train_nodes: int = 2,
        min_evaluate_nodes: int = 2,
        min_available_nodes: int = 2,
        num_malicious_nodes: int = 0,
        num_nodes_to_select: int = 1,
        weighted_by_key: str = "num-examples",
        arrayrecord_key: str = "arrays",
        configrecord_key: str = "config",
        train_metrics_aggr_fn: MetricsAggregation | None = None,
        evaluate_metrics_aggr_fn: MetricsAggregation | None = None,
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
        if num_malicious_nodes < 0:
            raise ValueError(f"num_malicious_nodes must be at least 0, not {num_malicious_nodes}")
        if num_nodes_to_select < 1:
            raise ValueError(f"num_nodes_to_select must be at least 1, not {num_nodes_to_select}")
        self.num_malicious_nodes = num_malicious_nodes
        self.num_nodes_to_select = num_nodes_to_select

    def summary(self) -> None:
        """Log how the strategy is set up."""
        log.info(
            "%s: %d nodes may be malicious, %d are selected",
            type(self).__name__,
            self.num_malicious_nodes,
            self.num_nodes_to_select,
        )
        super().summary()

    def admit(self, reply: UsableReply) -> None:
        """Refuse what could not be averaged, should it be chosen."""
        if self.num_nodes_to_select > 1:
            ArrayAverage(self._sent).check(reply.arrays, reply.weight)

    def combine(self, store: ReplyStore, metrics: FoldedMetrics) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The average of the replies of the lowest scores, and their metrics."""
        if not enough(len(store), self.num_malicious_nodes):
            log.warning(
                "%d replies are too few to withstand %d malicious nodes: more than %d are needed",
                len(store),
                self.num_malicious_nodes,
                2 * self.num_malicious_nodes + 2,
            )
        order = store.order
        scores = krum_scores(store.squared_distances(), self.num_malicious_nodes)
        chosen = [order[place] for place in lowest(scores, self.num_nodes_to_select)]
        average = ArrayAverage(self._sent)
        for place in chosen:
            # One alone is taken as it is: a weight would only cost its last bit.
            average.add(store.record(place), store.weight(place) if len(chosen) > 1 else 1.0)
        return average.result(), metrics.result(only=chosen)
