"""FedOpt: adaptive optimizers at the server, and what those of the family share."""

from __future__ import annotations

import logging
from abc import abstractmethod
from typing import Unpack

import numpy as np

from fedq.apps.arrayrecord import ArrayRecord
from fedq.apps.reals import Reals
from fedq.apps.recorddict import RecordDict
from fedq.apps.strategy.fedavg import FedAvg
from fedq.apps.strategy.folding import MetricsAggregation
from fedq.apps.strategy.moments import Moments, stepped
from fedq.apps.strategy.options import RoundOptions

log = logging.getLogger(__name__)


class FedOpt(FedAvg):
    """The base of FedAdagrad, FedAdam and FedYogi: S. Reddi et al., "Adaptive Federated Optimization", 2020,
    https://arxiv.org/abs/2003.00295, algorithm 2.

    With the model ``x`` and the average ``a`` of a round::

        delta = a - x
        m = beta_1 * m + (1 - beta_1) * delta
        v = ...                                     # `second_moment`, what the three differ in
        x = x + rate * m / (sqrt(v) + tau)          # `rate`: eta, unless a subclass says otherwise

    ``m`` and ``v`` begin at zero (the paper lets ``v`` begin at any value of at least ``tau ** 2``; Flower at zero).
    Complex numbers are optimized as pairs of real ones.

    The replies are folded as they arrive. Besides the model both moments are kept from round to round and in the
    checkpoint, each of the size of the model, half-precision ones in float32.

    Args:
        eta: the server's learning rate.
        eta_l: the learning rate of the nodes, as a record of it: nothing here depends on it.
        beta_1: the share of the first moment that lasts.
        beta_2: the same of the second moment.
        tau: added to the root of the second moment; the larger, the less adaptive.
        others: as in `FedAvg`.
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
        beta_1: float = 0.0,
        beta_2: float = 0.0,
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
            **options,
        )
        for name, beta in (("beta_1", beta_1), ("beta_2", beta_2)):
            if not 0.0 <= beta < 1.0:
                raise ValueError(f"{name} must be at least 0 and below 1, not {beta}")
        if not tau > 0.0:
            raise ValueError(f"tau must be above 0, not {tau}")
        self.eta = eta
        self.eta_l = eta_l
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.tau = tau
        self._first = Moments("first-moment")
        self._second = Moments("second-moment")

    def summary(self) -> None:
        """Log how the strategy is set up."""
        log.info(
            "%s: eta %g, eta_l %g, beta_1 %g, beta_2 %g, tau %g",
            type(self).__name__,
            self.eta,
            self.eta_l,
            self.beta_1,
            self.beta_2,
            self.tau,
        )
        super().summary()

    @abstractmethod
    def second_moment(self, moment: Reals, squared: Reals) -> Reals:
        """The new ``v`` of the old one and of ``delta ** 2``, element by element."""

    def rate(self, server_round: int) -> float:
        """The learning rate of a round."""
        return self.eta

    def update(self, server_round: int, average: ArrayRecord) -> ArrayRecord:
        """One step of the optimizer along ``average - sent``."""
        rate = self.rate(server_round)

        def step(name: str, model: Reals, mean: Reals) -> Reals:
            delta = mean - model
            first = self.beta_1 * self._first.get(name, delta.size) + (1.0 - self.beta_1) * delta
            second = self.second_moment(self._second.get(name, delta.size), delta * delta)
            self._first.put(name, first, average[name])
            self._second.put(name, second, average[name])
            return model + rate * first / (np.sqrt(second) + self.tau)

        return stepped(self.sent, average, step)

    def save_state(self) -> RecordDict:
        """That of the sampling, and both moments."""
        return RecordDict({**super().save_state(), **self._first.save(), **self._second.save()})

    def load_state(self, state: RecordDict) -> None:
        """Take up what `save_state` gave."""
        super().load_state(state)
        self._first.load(state)
        self._second.load(state)
