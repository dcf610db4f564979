"""Bulyan: the replies that Krum chooses, averaged around their median coordinate by coordinate."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Unpack

import numpy as np

from fedq.apps.arrayrecord import ArrayRecord
from fedq.apps.errors import StrategyError
from fedq.apps.metricrecord import MetricRecord
from fedq.apps.reals import Reals
from fedq.apps.recorddict import RecordDict
from fedq.apps.strategy.folding import FoldedMetrics, MetricsAggregation
from fedq.apps.strategy.gathering import Gathering, GatherOptions
from fedq.apps.strategy.krum_scores import krum_scores, lowest, lowest_repeatedly
from fedq.apps.strategy.reply_store import ReplyStore

log = logging.getLogger(__name__)

SelectionRule = Callable[[list[RecordDict], int, int], list[RecordDict]]


class Bulyan(Gathering):
    """Bulyan: E. M. El Mhamdi, R. Guerraoui, S. Rouault, "The Hidden Vulnerability of Distributed Learning in
    Byzantium", 2018, https://arxiv.org/abs/1802.07927, section 4.

    Of n replies, f of them possibly malicious, ``n - 2 * f`` are selected by Krum's scores. Then each number of the
    model becomes the plain mean of the ``n - 4 * f`` selected numbers at its place that are nearest to their median.
    With fewer than ``4 * f + 3`` replies the model stays as it was. The metrics are those of the replies selected.

    By default those of the lowest scores are selected at once, as in Flower. The paper lets Krum choose one, takes it
    out, and lets it choose again: `repeated_selection`.

    Needs all replies of a round at once; for how memory stays bounded see `Gathering`. Nothing but the model goes from
    round to round.

    Args:
        num_malicious_nodes: f.
        selection_rule: called with contents of replies in the order of node names, f and how many to select; returns
            those selected. The contents have the ArrayRecord ``"arrays"`` and are all in memory then. None: Krum.
        repeated_selection: select one by one, as published. Only without a rule of your own.
        others: as in `FedAvg`, and `memory_limit`.
    """

    def __init__(
        self,
        fraction_train: float = 1.0,
        fraction_evaluate: float = 1.0,
        min_train_nodes: int = 2,
        min_evaluate_nodes: int = 2,
        min_available_nodes: int = 2,
        num_malicious_nodes: int = 0,
        weighted_by_key: str = "num-examples",
        arrayrecord_key: str = "arrays",
        configrecord_key: str = "config",
        train_metrics_aggr_fn: MetricsAggregation | None = None,
        evaluate_metrics_aggr_fn: MetricsAggregation | None = None,
        selection_rule: SelectionRule | None = None,
        *,
        repeated_selection: bool = False,
        **options: Unpack[GatherOptions],
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
        if num_malicious_nodes < 0:
            raise ValueError(f"num_malicious_nodes must be at least 0, not {num_malicious_nodes}")
        if selection_rule is not None and repeated_selection:
            raise ValueError("repeated_selection is for Krum: your own selection_rule decides for itself")
        self.num_malicious_nodes = num_malicious_nodes
        self.selection_rule = selection_rule
        self.repeated_selection = repeated_selection

    def summary(self) -> None:
        """Log how the strategy is set up."""
        rule = "Krum" if self.selection_rule is None else getattr(self.selection_rule, "__name__", "a rule of the app")
        log.info("Bulyan: %d nodes may be malicious, selected by %s", self.num_malicious_nodes, rule)
        super().summary()

    def combine(self, store: ReplyStore, metrics: FoldedMetrics) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The mean around the median of the replies selected, and their metrics."""
        malicious = self.num_malicious_nodes
        if len(store) < 4 * malicious + 3:
            log.warning(
                "%d replies are too few to withstand %d malicious nodes: Bulyan needs %d; the model stays as it was",
                len(store),
                malicious,
                4 * malicious + 3,
            )
            return None, None
        selected = self._selected(store, len(store) - 2 * malicious)
        nearest = len(selected) - 2 * malicious

        def mean_around_median(values: Reals) -> Reals:
            values.sort(axis=0)
            distances = np.abs(values - np.median(values, axis=0))
            places = np.argsort(distances, axis=0, kind="stable")[:nearest]
            mean: Reals = np.take_along_axis(values, places, axis=0).mean(axis=0)
            return mean

        with np.errstate(over="ignore", invalid="ignore"):  # an attacker's values may be huge
            return store.combined(mean_around_median, selected), metrics.result(only=selected)

    def _selected(self, store: ReplyStore, number: int) -> list[int]:
        order = store.order
        if self.selection_rule is not None:
            contents = [RecordDict({"arrays": store.record(place)}) for place in order]
            chosen = self.selection_rule(list(contents), self.num_malicious_nodes, number)
            places = [order[k] for k, content in enumerate(contents) if any(content is other for other in chosen)]
            if len(places) != len(chosen) or len(places) <= 2 * self.num_malicious_nodes:
                raise StrategyError(
                    f"the selection_rule returned {len(chosen)} contents, {len(places)} of them of those it was given; "
                    f"it must select more than {2 * self.num_malicious_nodes} of them"
                )
            return places
        distances = store.squared_distances()
        if self.repeated_selection:
            ranks = lowest_repeatedly(distances, self.num_malicious_nodes, number)
        else:
            ranks = lowest(krum_scores(distances, self.num_malicious_nodes), number)
        return [order[rank] for rank in sorted(ranks)]
