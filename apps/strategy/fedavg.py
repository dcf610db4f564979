"""FedAvg: the weighted average of what the nodes trained."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fedq.apps.arrayrecord import ArrayRecord
from fedq.apps.configrecord import ConfigRecord
from fedq.apps.errors import InconsistentReply, StrategyError
from fedq.apps.grid import Grid, OnOffline
from fedq.apps.message import Message
from fedq.apps.message_type import MessageType
from fedq.apps.metricrecord import MetricRecord
from fedq.apps.recorddict import RecordDict
from fedq.apps.strategy.averaging import ArrayAverage
from fedq.apps.strategy.errors import CheckpointError
from fedq.apps.strategy.folding import FoldedMetrics, MetricsAggregation, UsableReply
from fedq.apps.strategy.partial import Partial
from fedq.apps.strategy.sampling import Sampler
from fedq.apps.strategy.strategy import Strategy

log = logging.getLogger(__name__)


class FedAvg(Strategy):
    """Federated averaging: B. McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized
    Data", 2017, https://arxiv.org/abs/1602.05629, algorithm 1.

    Each reply is folded into the average as it arrives and then let go, so that memory does not grow with the number of
    nodes. The average does not depend on the order of arrival, bit for bit (see `ArrayAverage`).

    A reply counts as failed, is logged and emitted as an event ``reply-failed``, and the round goes on without it, when
    it is an error; has not exactly one ArrayRecord (training) and one MetricRecord; lacks the weight, or the weight is
    no finite number above zero; has a metric that is no finite number; or when names or shapes of its arrays differ
    from those sent, complex stands where real was sent or the other way round, or a value is not finite. When none can
    be used the model stays as it was.

    A strategy that makes something else of the average (a server-side optimizer, say) overrides `update`.

    Args:
        fraction_train: share of the nodes that train in a round; 0 skips training.
        fraction_evaluate: share of the nodes that evaluate in a round; 0 skips it.
        min_train_nodes: train on at least so many nodes, whatever the fraction gives.
        min_evaluate_nodes: the same for evaluation.
        min_available_nodes: wait until so many nodes are connected.
        weighted_by_key: the metric that weighs a reply.
        arrayrecord_key: name of the ArrayRecord in the messages sent.
        configrecord_key: name of the ConfigRecord in the messages sent.
        train_metrics_aggr_fn: called with the replies' RecordDicts (without their arrays, which are gone by then, in
            the order of node names) and `weighted_by_key`; its MetricRecord stands for the weighted average.
        evaluate_metrics_aggr_fn: the same for evaluation.
        min_replies: go on after so many replies that are no errors; None: wait for all.
        grace: seconds to wait for further replies after that. What has not arrived then is cancelled.
        on_offline: ``"wait"`` samples among all nodes that are known, and a message to one that is offline waits
            for it, which an event ``waiting-for-offline`` tells; ``"fail"`` samples among those connected, and a
            message to one that went offline becomes an error.
        seed: of the sampling. None: ``seed`` of the run config if it is there, else one that follows from the run id:
            runs differ, and a run that is started again before its first checkpoint asks the same nodes.
        node_timeout: seconds to wait for `min_available_nodes` before the run fails; None: without limit.
        max_failed_rounds: the run fails after so many training rounds in a row without a usable reply, and at its end
            when no training round had one; None: never.
        reply_budget: bytes of the server's memory that the replies of a training round may take; None: as much as they
            need, which is one model for each node asked. With a budget only as many messages are out at a time as there
            is room for their replies; when half of it is taken, what is summed up so far is saved in a checkpoint in
            mid-round, and the replies in it are freed. The result has the same bits. The server needs no more than the
            budget and four times the model (of float32 or float64), and what a subclass keeps from round to round.
            At least 2.3 times the model. Nodes beyond the room begin later: a round takes longer where training does.
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
        min_replies: int | None = None,
        grace: float = 0.0,
        on_offline: OnOffline = "wait",
        seed: int | None = None,
        node_timeout: float | None = 300.0,
        max_failed_rounds: int | None = 3,
        reply_budget: int | None = None,
    ) -> None:
        for name, fraction in (("fraction_train", fraction_train), ("fraction_evaluate", fraction_evaluate)):
            if not 0.0 <= fraction <= 1.0:
                raise ValueError(f"{name} must lie between 0 and 1, not {fraction}")
        if min_replies is not None and min_replies < 1:
            raise ValueError(f"min_replies must be at least 1, not {min_replies}")
        if on_offline not in ("wait", "fail"):
            raise ValueError(f"on_offline must be 'wait' or 'fail', not {on_offline!r}")
        if reply_budget is not None and reply_budget < 1:
            raise ValueError(f"reply_budget is a number of bytes, not {reply_budget}")
        self.fraction_train = fraction_train
        self.fraction_evaluate = fraction_evaluate
        self.min_train_nodes = min_train_nodes if fraction_train else 0
        self.min_evaluate_nodes = min_evaluate_nodes if fraction_evaluate else 0
        self.min_available_nodes = min_available_nodes
        self.weighted_by_key = weighted_by_key
        self.arrayrecord_key = arrayrecord_key
        self.configrecord_key = configrecord_key
        self.train_metrics_aggr_fn = train_metrics_aggr_fn
        self.evaluate_metrics_aggr_fn = evaluate_metrics_aggr_fn
        self.min_replies = min_replies
        self.grace = grace
        self.on_offline: OnOffline = on_offline
        self.seed = seed
        self.node_timeout = node_timeout
        self.max_failed_rounds = max_failed_rounds
        self.reply_budget = reply_budget
        self._sampler: Sampler | None = None
        self._sent: ArrayRecord | None = None
        self._folded = 0
        self._pool = 0
        self.sampled_from = 0  # how many nodes those of the training round were drawn from
        self._privatize: Callable[[ArrayRecord], ArrayRecord] | None = None  # set by the wrappers that add noise

    @property
    def folded(self) -> int:
        """Replies that have gone into the average of the phase in progress."""
        return self._folded

    def summary(self) -> None:
        """Log how the strategy is set up."""
        log.info(
            "nodes: fractions %g train, %g evaluate; at least %d train, %d evaluate, %d connected; weighted by %r",
            self.fraction_train,
            self.fraction_evaluate,
            self.min_train_nodes,
            self.min_evaluate_nodes,
            self.min_available_nodes,
            self.weighted_by_key,
        )

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One message with the arrays and the config to each sampled node. Sets ``server-round`` in the config."""
        if self.fraction_train == 0.0:
            return []
        self._sent = arrays
        nodes = self._sample(grid, "train", self.fraction_train, self.min_train_nodes)
        self.sampled_from = self._pool
        return self._messages(server_round, arrays, config, nodes, MessageType.TRAIN)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One message with the arrays and the config to each sampled node. Sets ``server-round`` in the config."""
        if self.fraction_evaluate == 0.0:
            return []
        nodes = self._sample(grid, "evaluate", self.fraction_evaluate, self.min_evaluate_nodes)
        return self._messages(server_round, arrays, config, nodes, MessageType.EVALUATE)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average arrays and metrics of the replies, each weighted by its `weighted_by_key`.

        Where no round was configured before, the first usable reply decides on names and shapes of the arrays.
        """
        average = ArrayAverage(self._sent)
        metrics = self.fold(
            replies,
            lambda reply: average.add(reply.arrays, reply.weight),
            self.train_metrics_aggr_fn,
            partial={"average": average},
        )
        arrays = average.result()
        if arrays is not None:
            if self._privatize is not None:
                arrays = self._privatize(arrays)
            arrays = self.update(server_round, arrays)
        return arrays, metrics.result()

    def update(self, server_round: int, average: ArrayRecord) -> ArrayRecord:
        """The new model, made of the average of a round. It is the average itself unless a subclass says otherwise.

        `sent` is the model that was sent out in this round.
        """
        return average

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Average the metrics of the replies, each weighted by its `weighted_by_key`."""
        return self.fold(replies, None, self.evaluate_metrics_aggr_fn).result()

    @property
    def sent(self) -> ArrayRecord:
        """The model that was sent out in the training round in progress.

        Raises:
            StrategyError: no round was configured yet.
        """
        if self._sent is None:
            raise StrategyError(
                f"{type(self).__name__} compares the replies with the model that was sent: call configure_train before "
                "aggregate_train, and from your own configure_train that of the base class"
            )
        return self._sent

    def fold(
        self,
        replies: Iterable[Message],
        take: Callable[[UsableReply], None] | None,
        aggregate: MetricsAggregation | None,
        partial: Mapping[str, Partial] | None = None,
    ) -> FoldedMetrics:
        """Go through the replies, hand the usable ones to `take` and return their metrics; count the others as failed.

        Args:
            replies: iterated once; none is kept.
            take: called with each reply as it arrives. An `InconsistentReply` that it raises makes the reply a failure.
            aggregate: what `FoldedMetrics.result` is to use in place of the weighted average.
            partial: by names, all that `take` sums up in, so that a checkpoint in the midst of the round can hold it.
                Without it the strategy cannot keep a `reply_budget`.
        """
        metrics = FoldedMetrics(self.weighted_by_key, aggregate)
        if partial is not None:
            self.keep_partial(metrics=metrics, **partial)
        self._folded = len(metrics)
        for reply in replies:
            if reply.has_error():
                reason = reply.error.reason or "no reason was given"
                self.record_failure(reply, f"error {int(reply.error.code)}: {reason}")
                continue
            try:
                usable = UsableReply.of(reply, self.weighted_by_key)
                if take is not None:
                    take(usable)
            except InconsistentReply as exc:
                self.record_failure(reply, str(exc))
                continue
            metrics.add(usable)
            self._folded += 1
            del reply, usable  # there is room for one reply, and the next is coming
        return metrics

    def stream_options(self, messages: int) -> dict[str, Any]:
        """First k of n, grace and what to do about nodes that are offline."""
        wanted = None if self.min_replies is None else min(self.min_replies, messages)
        return {"min_replies": wanted, "grace": self.grace, "on_offline": self.on_offline}

    def save_state(self) -> RecordDict:
        """The state of the sampling."""
        if self._sampler is None:
            return RecordDict()
        return RecordDict({"sampling": ConfigRecord({"state": self._sampler.state})})

    def load_state(self, state: RecordDict) -> None:
        """Take up the state of the sampling."""
        if "sampling" not in state:
            return
        record = state["sampling"]
        if not isinstance(record, ConfigRecord) or not isinstance(text := record.get("state"), str):
            raise CheckpointError("the checkpoint holds no state of a sampler; start the run anew")
        self._sampler = Sampler(0)
        self._sampler.state = text

    def _sample(self, grid: Grid, phase: str, fraction: float, minimum: int) -> list[str]:
        nodes, online = self._candidates(grid, minimum)
        self._pool = len(nodes)
        if self._sampler is None:
            self._sampler = Sampler(self.seed if self.seed is not None else _seed_of(grid))
        chosen = self._sampler.sample(nodes, max(int(len(nodes) * fraction), minimum))
        self._tell(grid, phase, chosen, nodes, online)
        return chosen

    def _candidates(self, grid: Grid, minimum: int) -> tuple[list[str], list[str]]:
        """Wait for the nodes that are needed; those that may be asked, and those of all that are connected."""
        online = grid.wait_for_nodes(max(self.min_available_nodes, minimum), timeout=self.node_timeout)
        return (grid.get_node_ids(online=False) if self.on_offline == "wait" else online), online

    def _tell(self, grid: Grid, phase: str, chosen: list[str], nodes: list[str], online: list[str]) -> None:
        log.info("%s: sampled %d of %d nodes", phase, len(chosen), len(nodes))
        if offline := sorted(set(chosen) - set(online)):
            names = ", ".join(offline)
            text = f"waits for {names}, offline; on_offline='fail' leaves out nodes that are not connected"
            log.warning(text)
            grid.emit("waiting-for-offline", {"nodes": offline, "text": text})

    def _messages(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, nodes: list[str], message_type: str
    ) -> list[Message]:
        config["server-round"] = server_round
        record = RecordDict({self.arrayrecord_key: arrays, self.configrecord_key: config})
        return [Message(record, node, message_type, group_id=str(server_round)) for node in nodes]


def _seed_of(grid: Grid) -> int:
    context = grid.context
    seed = None if context is None else context.run_config.get("seed")
    if isinstance(seed, int) and not isinstance(seed, bool):
        return seed
    return int.from_bytes(hashlib.blake2b(f"run {grid.run_id}".encode(), digest_size=8).digest(), "little")
