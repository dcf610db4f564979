"""FedProx: federated averaging whose nodes are held to the model that they were sent."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Unpack

from fedq.apps.arrayrecord import ArrayRecord
from fedq.apps.configrecord import ConfigRecord
from fedq.apps.grid import Grid
from fedq.apps.message import Message
from fedq.apps.strategy.fedavg import FedAvg
from fedq.apps.strategy.folding import MetricsAggregation
from fedq.apps.strategy.options import RoundOptions

log = logging.getLogger(__name__)


class FedProx(FedAvg):
    """FedProx: T. Li et al., "Federated Optimization in Heterogeneous Networks", 2018,
    https://arxiv.org/abs/1812.06127, algorithm 2.

    The server averages as FedAvg does. The method lies in what the nodes minimise: their loss plus
    ``mu / 2 * ||w - w_sent||**2``, the squared distance of their model from the one they were sent. The coefficient
    reaches them in the config of each training message, under ``"proximal-mu"``; adding the term is up to the
    ClientApp, whose gradient gains ``mu * (w - w_sent)``.

    Args:
        proximal_mu: the coefficient, at least 0; with 0 it is FedAvg.
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
        proximal_mu: float = 0.0,
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
        if not proximal_mu >= 0.0:
            raise ValueError(f"proximal_mu must be at least 0, not {proximal_mu}")
        self.proximal_mu = proximal_mu
        if proximal_mu == 0.0:
            log.warning("FedProx with proximal_mu=0 is FedAvg")

    def summary(self) -> None:
        """Log how the strategy is set up."""
        log.info("FedProx: proximal mu %g", self.proximal_mu)
        super().summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As FedAvg, with ``proximal-mu`` in the config."""
        config["proximal-mu"] = self.proximal_mu
        return super().configure_train(server_round, arrays, config, grid)
