"""FedXgbBagging: boosted trees of all nodes, gathered into one model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np

from fedq.apps.array import Array
from fedq.apps.arrayrecord import ArrayRecord
from fedq.apps.configrecord import ConfigRecord
from fedq.apps.errors import InconsistentReply, StrategyError
from fedq.apps.grid import Grid
from fedq.apps.message import Message, make_message
from fedq.apps.metadata import Metadata
from fedq.apps.metricrecord import MetricRecord
from fedq.apps.outline import numpy_of
from fedq.apps.recorddict import RecordDict
from fedq.apps.strategy.boosted_trees import BoostedTrees
from fedq.apps.strategy.fedavg import FedAvg
from fedq.apps.strategy.folding import ReplyKey, UsableReply


class FedXgbBagging(FedAvg):
    """Bagging of XGBoost trees, after the strategy of that name in Flower (there is no paper that defines it).

    The model is an XGBoost model in JSON, as the bytes of one array of dtype uint8. Each node boosts the model that it
    was sent and replies with the *new* trees alone; they are added to the model, node by node in the order of names.
    The first model may be empty (an array of no bytes): then the trees of the first node by name are what the others
    are added to. All trees of a reply are added, also those of several boosting rounds or of several classes, of which
    Flower keeps the first ``num_parallel_tree``.

    Fix ``base_score`` in XGBoost's parameters: otherwise each node's first trees begin with the mean of its own labels,
    of which the model keeps only the first node's. And share the learning rate among the nodes, since the trees of a
    round all correct the same error.

    A reply whose array is no such model, or one of another number of features, counts as failed; with an empty first
    model the number is the one that most replies have, of equally many that of the first node by name. The number of
    examples counts for the metrics only.

    Replies are checked as they arrive; what is held of them are their new trees. Nothing but the model goes from round
    to round. The arguments are those of `FedAvg`.
    """

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As FedAvg.

        Raises:
            StrategyError: there is not exactly one array.
        """
        if len(arrays) != 1:
            raise StrategyError(f"FedXgbBagging needs one array with the model, not {len(arrays)}", run_id=grid.run_id)
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Check the new trees as they arrive, and add them to the model in the order of node names."""
        ((name, sent),) = self.sent.items()
        held = sent.numpy(copy=False).tobytes()
        model = BoostedTrees(held) if held else None
        kept: list[tuple[ReplyKey, int, int, bytes]] = []
        metadata: dict[str, Metadata] = {}

        def noted() -> Iterator[Message]:
            for reply in replies:
                metadata[reply.metadata.reply_to_message_id] = reply.metadata
                yield reply

        def take(reply: UsableReply) -> None:
            arrays = reply.arrays
            if len(arrays) != 1:
                raise InconsistentReply(f"its ArrayRecord has {len(arrays)} arrays instead of one")
            ((place, array),) = arrays.items()
            data = numpy_of(place, array).tobytes()
            trees = BoostedTrees(data)
            if model is not None:
                model.check(trees)
            kept.append((reply.key, len(kept), trees.features, data))

        metrics = self.fold(noted(), take, self.train_metrics_aggr_fn)
        if not kept:
            return None, metrics.result()
        kept.sort()
        if model is None:
            ((features, _),) = Counter(features for _, _, features, _ in kept).most_common(1)
            for (_, message_id), _, other, _ in kept:
                if other != features:
                    reason = f"its XGBoost model has {other} features, the one that others are added to has {features}"
                    self.record_failure(make_message(metadata[message_id], RecordDict()), reason)
            kept = [item for item in kept if item[2] == features]
        if model is None and len(kept) == 1:
            made = kept[0][3]
        else:
            trees = (BoostedTrees(data) for *_, data in kept)
            model = model if model is not None else next(trees)
            model.extend(trees)
            made = model.to_bytes()
        aggregated = metrics.result(only={place for _, place, _, _ in kept})
        return ArrayRecord({name: Array(np.frombuffer(made, dtype=np.uint8))}), aggregated
