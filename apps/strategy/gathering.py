"""The base of strategies that need all replies of a round at once."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Unpack

from fedq.apps.arrayrecord import ArrayRecord
from fedq.apps.message import Message
from fedq.apps.metricrecord import MetricRecord
from fedq.apps.strategy.fedavg import FedAvg
from fedq.apps.strategy.folding import FoldedMetrics, MetricsAggregation, UsableReply
from fedq.apps.strategy.options import RoundOptions
from fedq.apps.strategy.reply_store import MEMORY_LIMIT, ReplyStore


class GatherOptions(RoundOptions, total=False):
    """Those of `RoundOptions`, and how many bytes of replies stay in memory (256 MiB); what is more goes to a file."""

    memory_limit: int


class Gathering(FedAvg):
    """Collects the replies of a round, each as it arrives, and makes a model of them at the end.

    Memory is bounded whatever the number of nodes and the size of the model: replies beyond `memory_limit` lie in a
    temporary file (see `ReplyStore`), and are read in blocks. The disk holds nodes times model then.
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
        *,
        memory_limit: int = MEMORY_LIMIT,
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
        if memory_limit < 0:
            raise ValueError(f"memory_limit is a number of bytes, not {memory_limit}")
        if self.reply_budget is not None:
            raise ValueError(
                f"{type(self).__name__} needs all replies of a round at once and frees none before its end: "
                "reply_budget is for strategies that sum up"
            )
        self.memory_limit = memory_limit

    def admit(self, reply: UsableReply) -> None:
        """Look at a reply before it is stored, for what `combine` could not work with. Nothing by default.

        Raises:
            InconsistentReply: it counts as failed.
        """

    @abstractmethod
    def combine(self, store: ReplyStore, metrics: FoldedMetrics) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The new arrays, or None to keep the old ones, and the metrics of a round with at least one usable reply."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Collect the usable replies, then combine them."""
        with ReplyStore(self._sent, self.memory_limit) as store:

            def take(reply: UsableReply) -> None:
                self.admit(reply)
                store.add(reply.key, reply.arrays, reply.weight)

            metrics = self.fold(replies, take, self.train_metrics_aggr_fn)
            return self.combine(store, metrics) if len(store) else (None, None)
