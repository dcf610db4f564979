"""QFedAvg: averaging that favours the nodes whose loss is high."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator
from typing import Unpack

import numpy as np

from fedq.apps.arrayrecord import ArrayRecord
from fedq.apps.errors import InconsistentReply
from fedq.apps.message import Message
from fedq.apps.metricrecord import MetricRecord
from fedq.apps.outline import numpy_of
from fedq.apps.reals import Reals, norm, to_reals
from fedq.apps.strategy.averaging import ArrayAverage
from fedq.apps.strategy.fedavg import FedAvg
from fedq.apps.strategy.folding import MetricsAggregation, UsableReply, number
from fedq.apps.strategy.moments import stepped
from fedq.apps.strategy.options import RoundOptions
from fedq.apps.strategy.partial import Partial, PlainPartial

log = logging.getLogger(__name__)

_SMALL = 1e-10  # added to losses, so that a loss of zero has all powers


class QFedAvg(FedAvg):
    """q-FedAvg: T. Li, M. Sanjabi, A. Beirami, V. Smith, "Fair Resource Allocation in Federated Learning", 2020,
    https://openreview.net/forum?id=ByexElSYDr, algorithm 2.

    With the model ``w`` sent, and of each node its model ``w_k`` and its loss ``F_k``::

        L = 1 / client_learning_rate
        delta_k = L * (w - w_k) * F_k ** q
        h_k = q * F_k ** (q - 1) * ||L * (w - w_k)|| ** 2 + L * F_k ** q
        w = w - sum(delta_k) / sum(h_k)

    As in Flower 1e-10 is added to each loss. The number of examples counts for the metrics only; with q = 0 the new
    model is the plain mean. The loss is that of the model which was *sent*; a reply without a loss, or with one that is
    negative or not finite, counts as failed.

    The replies are folded as they arrive: the sum of the deltas is that of the average weighted by ``F_k ** q``, hence
    exact whatever the order. Nothing but the model goes from round to round.

    Args:
        client_learning_rate: with which the nodes train.
        q: how much high losses count, at least 0.
        train_loss_key: name of the loss among the metrics of a reply.
        others: as in `FedAvg`.
    """

    def __init__(
        self,
        client_learning_rate: float,
        q: float = 0.1,
        train_loss_key: str = "train_loss",
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
        if not client_learning_rate > 0.0:
            raise ValueError(f"client_learning_rate must be above 0, not {client_learning_rate}")
        if not q >= 0.0:
            raise ValueError(f"q must be at least 0, not {q}")
        self.client_learning_rate = client_learning_rate
        self.q = q
        self.train_loss_key = train_loss_key

    def summary(self) -> None:
        """Log how the strategy is set up."""
        log.info("QFedAvg: q %g, learning rate of the nodes %g", self.q, self.client_learning_rate)
        super().summary()

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Sum the deltas and the ``h_k`` as the replies arrive, then take the step."""
        sent = self.sent
        average = ArrayAverage(sent)
        lipschitz = 1.0 / self.client_learning_rate
        powers: list[float] = []
        steps: list[float] = []

        def take(reply: UsableReply) -> None:
            loss = self._loss(reply) + _SMALL
            power = loss**self.q
            squared = _squared_distance(sent, reply.arrays)
            step = self.q * loss ** (self.q - 1.0) * lipschitz**2 * squared + lipschitz * power
            if not math.isfinite(step):
                raise InconsistentReply("its arrays are too far from those sent, or its loss too high, for float64")
            average.add(reply.arrays, power)
            powers.append(power)
            steps.append(step)

        def resume(kept: list[list[float]]) -> None:
            powers[:], steps[:] = kept

        partial: dict[str, Partial] = {"average": average, "steps": PlainPartial(lambda: [powers, steps], resume)}
        metrics = self.fold(replies, take, self.train_metrics_aggr_fn, partial)
        mean = average.result()
        if mean is None:
            return None, metrics.result()
        # sum(delta_k) / sum(h_k) is this share of the way from the model to the mean weighted by F_k ** q.
        share = lipschitz * math.fsum(powers) / math.fsum(steps)

        def step(name: str, model: Reals, weighted: Reals) -> Reals:
            return model - share * (model - weighted)

        return stepped(sent, mean, step), metrics.result()

    def _loss(self, reply: UsableReply) -> float:
        value = reply.metrics.get(self.train_loss_key)
        if value is None or isinstance(value, list):
            raise InconsistentReply(f"its MetricRecord has no number {self.train_loss_key!r}, the loss before training")
        loss = number(value)
        if not (math.isfinite(loss) and loss >= 0.0):
            raise InconsistentReply(f"its {self.train_loss_key!r} is {value}, where a loss of at least 0 is needed")
        return loss


def _squared_distance(sent: ArrayRecord, arrays: ArrayRecord) -> float:
    """``||sent - arrays|| ** 2``, of the arrays that fit; the average refuses a reply with others.

    Raises:
        InconsistentReply: one of them is none that NumPy can read.
    """

    def differences() -> Iterator[Reals]:  # one array at a time, since each is taken in float64
        for name, array in arrays.items():
            if name in sent:
                one, other = to_reals(sent[name].numpy(copy=False)), to_reals(numpy_of(name, array))
                if one.size == other.size and np.isfinite(other).all():
                    yield one - other

    distance = norm(differences())
    return distance * distance  # ** would raise where this is infinite
