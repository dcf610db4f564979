"""Krum: the reply that lies nearest to its neighbours."""

from __future__ import annotations

from typing import Unpack

from fedq.apps.strategy.folding import MetricsAggregation
from fedq.apps.strategy.gathering import GatherOptions
from fedq.apps.strategy.multikrum import MultiKrum


class Krum(MultiKrum):
    """Krum: P. Blanchard, E. M. El Mhamdi, R. Guerraoui, J. Stainer, "Machine Learning with Adversaries: Byzantine
    Tolerant Gradient Descent", 2017, https://arxiv.org/abs/1703.02757, section 4.

    `MultiKrum` that selects one reply: the new model is that of one node.

    Args:
        num_malicious_nodes: as in `MultiKrum`.
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
            num_malicious_nodes=num_malicious_nodes,
            num_nodes_to_select=1,
            **options,
        )
