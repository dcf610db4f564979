"""FedAdagrad: Adagrad at the server."""

from __future__ import annotations

from typing import Unpack

from fedq.apps.reals import Reals
from fedq.apps.strategy.fedopt import FedOpt
from fedq.apps.strategy.folding import MetricsAggregation
from fedq.apps.strategy.options import RoundOptions


class FedAdagrad(FedOpt):
    """FedAdagrad: S. Reddi et al., "Adaptive Federated Optimization", 2020, https://arxiv.org/abs/2003.00295,
    algorithm 2, with ``v = v + delta ** 2`` and without a first moment (``beta_1 = 0``).

    Arguments, memory and checkpoint are those of `FedOpt`.
    """

    def __init__(
        self,
        *,
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
        eta: float = 1e-1,
        eta_l: float = 1e-1,
        tau: float = 1e-3,
        **options: Unpack[RoundOptions],
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
            eta=eta,
            eta_l=eta_l,
            beta_1=0.0,
            beta_2=0.0,
            tau=tau,
            **options,
        )

    def second_moment(self, moment: Reals, squared: Reals) -> Reals:
        """The sum of the squares."""
        return moment + squared
