"""FedAvgM: federated averaging with momentum at the server."""

from __future__ import annotations

import logging
from typing import Unpack

from fedq.apps.arrayrecord import ArrayRecord
from fedq.apps.reals import Reals
from fedq.apps.recorddict import RecordDict
from fedq.apps.strategy.fedavg import FedAvg
from fedq.apps.strategy.folding import MetricsAggregation
from fedq.apps.strategy.moments import Moments, stepped
from fedq.apps.strategy.options import RoundOptions

log = logging.getLogger(__name__)


class FedAvgM(FedAvg):
    """FedAvgM: T.-M. H. Hsu, H. Qi, M. Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated
    Visual Classification", 2019, https://arxiv.org/abs/1909.06335, section 4.3.

    With the model ``w`` and the average ``a`` of a round, ``v = momentum * v + (w - a)`` and then
    ``w = w - learning_rate * v``; ``v`` begins at zero. A learning rate of 1 without momentum is FedAvg.

    The replies are folded as they arrive. Besides the model the velocity ``v`` is kept from round to round and in the
    checkpoint.

    Args:
        server_learning_rate: of the server's step.
        server_momentum: the share of the velocity that lasts, at least 0.
        others: as in `FedAvg`.
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
        server_learning_rate: float = 1.0,
        server_momentum: float = 0.0,
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
        if not server_momentum >= 0.0:
            raise ValueError(f"server_momentum must be at least 0, not {server_momentum}")
        self.server_learning_rate = server_learning_rate
        self.server_momentum = server_momentum
        self._velocity = Moments("momentum")

    def summary(self) -> None:
        """Log how the strategy is set up."""
        log.info("FedAvgM: learning rate %g, momentum %g", self.server_learning_rate, self.server_momentum)
        super().summary()

    def update(self, server_round: int, average: ArrayRecord) -> ArrayRecord:
        """One step of gradient descent with momentum along ``sent - average``."""
        if self.server_momentum == 0.0 and self.server_learning_rate == 1.0:
            return average

        def step(name: str, model: Reals, mean: Reals) -> Reals:
            direction = model - mean
            if self.server_momentum > 0.0:
                direction += self.server_momentum * self._velocity.get(name, direction.size)
                self._velocity.put(name, direction, average[name])
            return model - self.server_learning_rate * direction

        return stepped(self.sent, average, step)

    def save_state(self) -> RecordDict:
        """That of the sampling, and the velocity."""
        return RecordDict({**super().save_state(), **self._velocity.save()})

    def load_state(self, state: RecordDict) -> None:
        """Take up what `save_state` gave."""
        super().load_state(state)
        self._velocity.load(state)
