"""FedXgbCyclic: one node after the other goes on with the model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Unpack

from fedq.apps.array import COMPRESSED, NUMPY
from fedq.apps.arrayrecord import ArrayRecord
from fedq.apps.compression import SPARSE
from fedq.apps.configrecord import ConfigRecord
from fedq.apps.grid import Grid
from fedq.apps.message import Message
from fedq.apps.message_type import MessageType
from fedq.apps.metricrecord import MetricRecord
from fedq.apps.outline import numpy_of
from fedq.apps.recorddict import RecordDict
from fedq.apps.strategy.errors import CheckpointError
from fedq.apps.strategy.fedavg import FedAvg
from fedq.apps.strategy.folding import MetricsAggregation, ReplyKey, UsableReply
from fedq.apps.strategy.options import RoundOptions


class FedXgbCyclic(FedAvg):
    """Cyclic training of XGBoost trees, after the strategy of that name in Flower (there is no paper that defines it).

    In each round one node is asked to train and one to evaluate: in round r the node at place ``(r - 1) % n``, of nodes
    in the order of their names; one that comes later goes to the end. What it replies is the new model, whatever arrays
    it holds. Nothing here is peculiar to trees. A reply with an array that should be one of NumPy's and is not readable
    counts as failed, and the model stays as it was; formats of your own are not looked into.

    One reply is held. The order of the nodes goes from round to round and is in the checkpoint.

    Args:
        fraction_train: 1 to train, 0 not to.
        fraction_evaluate: 1 to evaluate, 0 not to.
        others: as in `FedAvg`.
    """

    def __init__(
        self,
        fraction_train: float = 1.0,
        fraction_evaluate: float = 1.0,
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
            min_available_nodes=min_available_nodes,
            weighted_by_key=weighted_by_key,
            arrayrecord_key=arrayrecord_key,
            configrecord_key=configrecord_key,
            train_metrics_aggr_fn=train_metrics_aggr_fn,
            evaluate_metrics_aggr_fn=evaluate_metrics_aggr_fn,
            **options,
        )
        for name, fraction in (("fraction_train", fraction_train), ("fraction_evaluate", fraction_evaluate)):
            if fraction not in (0.0, 1.0):
                raise ValueError(f"{name} must be 0 or 1 where one node is asked in a round, not {fraction}")
        self._order: list[str] = []

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One message, to the node whose turn it is."""
        if self.fraction_train == 0.0:
            return []
        self._sent = arrays
        nodes = self._turn(server_round, grid, self.min_train_nodes)
        return self._messages(server_round, arrays, config, nodes, MessageType.TRAIN)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One message, to the node whose turn it is."""
        if self.fraction_evaluate == 0.0:
            return []
        nodes = self._turn(server_round, grid, self.min_evaluate_nodes)
        return self._messages(server_round, arrays, config, nodes, MessageType.EVALUATE)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The arrays of the reply; of several, those of the node whose name comes first."""
        first: tuple[ReplyKey, ArrayRecord] | None = None

        def take(reply: UsableReply) -> None:
            nonlocal first
            arrays = reply.arrays
            for name, array in arrays.items():
                if array.stype in (NUMPY, COMPRESSED, SPARSE):
                    numpy_of(name, array)
            if first is None or reply.key < first[0]:
                first = (reply.key, arrays)

        metrics = self.fold(replies, take, self.train_metrics_aggr_fn)
        return (None if first is None else first[1]), metrics.result()

    def save_state(self) -> RecordDict:
        """That of FedAvg, and the order of the nodes."""
        return RecordDict({**super().save_state(), "cycle": ConfigRecord({"order": list(self._order)})})

    def load_state(self, state: RecordDict) -> None:
        """Take up what `save_state` gave."""
        super().load_state(state)
        record = state.get("cycle", ConfigRecord({"order": []}))
        order = record.get("order") if isinstance(record, ConfigRecord) else None
        if not isinstance(order, list):
            raise CheckpointError("the checkpoint holds no order of the nodes; start the run anew")
        self._order = [str(name) for name in order]

    def _turn(self, server_round: int, grid: Grid, minimum: int) -> list[str]:
        nodes, online = self._candidates(grid, minimum)
        self._order += sorted(set(nodes) - set(self._order))
        there = [name for name in self._order if name in set(nodes)]
        chosen = [there[(server_round - 1) % len(there)]]
        self._tell(grid, "train", chosen, nodes, online)
        return chosen
