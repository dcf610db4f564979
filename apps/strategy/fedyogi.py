"""FedYogi: Yogi at the server."""

from __future__ import annotations

from typing import Unpack

import numpy as np

from fedq.apps.reals import Reals
from fedq.apps.strategy.fedopt import FedOpt
from fedq.apps.strategy.folding import MetricsAggregation
from fedq.apps.strategy.options import RoundOptions


class FedYogi(FedOpt):
    """FedYogi: S. Reddi et al., "Adaptive Federated Optimization", 2020, https://arxiv.org/abs/2003.00295, algorithm 2,
    with ``v = v - (1 - beta_2) * delta ** 2 * sign(v - delta ** 2)``.

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
        eta: float = 1e-2,
        eta_l: float = 0.0316,
        beta_1: float = 0.9,
        beta_2: float = 0.99,
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
            beta_1=beta_1,
            beta_2=beta_2,
            tau=tau,
            **options,
        )

    def second_moment(self, moment: Reals, squared: Reals) -> Reals:
        """A step towards the square whose size is that of the square."""
        return moment - (1.0 - self.beta_2) * squared * np.sign(moment - squared)
