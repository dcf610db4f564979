"""FedAdam: Adam at the server."""

from __future__ import annotations

import math
from typing import Unpack

from fedq.apps.reals import Reals
from fedq.apps.strategy.fedopt import FedOpt
from fedq.apps.strategy.folding import MetricsAggregation
from fedq.apps.strategy.options import RoundOptions


class FedAdam(FedOpt):
    """FedAdam: S. Reddi et al., "Adaptive Federated Optimization", 2020, https://arxiv.org/abs/2003.00295, algorithm 2,
    with ``v = beta_2 * v + (1 - beta_2) * delta ** 2``.

    The algorithm has no correction of the bias that moments have which begin at zero. As Flower does, round ``t`` uses
    the rate ``eta * sqrt(1 - beta_2 ** (t + 1)) / (1 - beta_1 ** (t + 1))`` after D. Kingma, J. Ba, "Adam: A Method for
    Stochastic Optimization", 2014, https://arxiv.org/abs/1412.6980, section 2; ``bias_correction=False`` gives the
    algorithm as published.

    Other arguments, memory and checkpoint are those of `FedOpt`.
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
        beta_1: float = 0.9,
        beta_2: float = 0.99,
        tau: float = 1e-3,
        bias_correction: bool = True,
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
        self.bias_correction = bias_correction

    def rate(self, server_round: int) -> float:
        """The learning rate of a round, corrected for the bias of the moments."""
        if not self.bias_correction:
            return self.eta
        steps = server_round + 1
        return self.eta * math.sqrt(1.0 - self.beta_2**steps) / (1.0 - self.beta_1**steps)

    def second_moment(self, moment: Reals, squared: Reals) -> Reals:
        """The moving average of the squares."""
        return self.beta_2 * moment + (1.0 - self.beta_2) * squared
