"""The base of the strategies that do not wait for all: a reply is taken when it comes, its node gets new work."""

from __future__ import annotations

import logging
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import NoReturn, TypedDict

from fedq.apps.arrayrecord import ArrayRecord
from fedq.apps.compression import restored
from fedq.apps.configrecord import ConfigRecord
from fedq.apps.errors import InconsistentReply, StrategyError
from fedq.apps.grid import JSON, Grid, OnOffline
from fedq.apps.message import Message
from fedq.apps.message_type import MessageType
from fedq.apps.metricrecord import MetricRecord
from fedq.apps.recorddict import RecordDict
from fedq.apps.strategy.checkpoint import Checkpoint, finite
from fedq.apps.strategy.errors import NoUsableReplies
from fedq.apps.strategy.fedavg import FedAvg, _seed_of
from fedq.apps.strategy.folding import FoldedMetrics, MetricsAggregation, UsableReply
from fedq.apps.strategy.in_flight import Evaluation, InFlight
from fedq.apps.strategy.result import Result
from fedq.apps.strategy.sampling import Sampler
from fedq.apps.strategy.words import round_in_words

log = logging.getLogger(__name__)

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]


class AsyncOptions(TypedDict, total=False):
    """Keyword arguments that go to `Asynchronous` as they are; their meaning is told there."""

    concurrency: int | None
    evaluate_every: int
    fraction_evaluate: float
    min_evaluate_nodes: int
    min_available_nodes: int
    weighted_by_key: str
    arrayrecord_key: str
    configrecord_key: str
    train_metrics_aggr_fn: MetricsAggregation | None
    evaluate_metrics_aggr_fn: MetricsAggregation | None
    on_offline: OnOffline
    seed: int | None
    node_timeout: float | None
    max_failed_rounds: int | None


class Asynchronous(FedAvg):
    """Keeps `concurrency` nodes at work. What arrives goes into a buffer; when it has `buffer_size` replies the model
    is updated, and that is a *round*: an event ``round``, a checkpoint, an evaluation. Nodes that are still at work on
    an older model go on, and their replies count for what they are. ClientApps are those for FedAvg: they get a model
    and return one.

    A subclass says what it takes of a reply (`take`) and what it makes of the buffer (`merge`).

    - A node has one training message at a time. The next goes to one of those that are idle, drawn at random, with the
      newest model. Nodes that have joined are seen at the next update.
    - A reply that is of no use (see `FedAvg`) is a counted failure; a node that is gone, or that did not answer within
      the `timeout` of `start`, is one too. Its node rests until the next update, or until nobody else is left to ask.
      When all have been asked in vain the round counts as failed, and the model stays as it was.
    - Evaluation does not stop the training either: nodes find it in their inbox before their next training message, and
      when the last of them has answered the round's event ``round`` comes a second time, with ``evaluate`` filled in. A
      node that has an evaluation to do gets no second one.

    The ServerApp may be killed at any point. The checkpoint of a round holds the model, the older models that
    messages under way were sent with, and the ids of these messages; it frees the replies that went into it. A
    ServerApp that is started again goes on from there, and what it did behind the checkpoint it does again, in the
    same order, as the journal tells: no message is sent twice, no reply is lost or counted twice. Nevertheless two
    runs may differ, since which replies are together in a buffer depends on when they arrive; in
    `fedq.apps.testing.Federation`, whose clock is a virtual one, they do not. Within a buffer the order makes no
    difference.

    Memory besides the model: one older model for each version that a message under way goes back to, at most
    `concurrency`, and what `take` keeps.

    Args:
        buffer_size: replies that make an update.
        concurrency: nodes at work at the same time; None: all.
        evaluate_every: evaluate after every so many rounds, and after the last: at the nodes, and with `evaluate_fn`.
        fraction_evaluate: share of the nodes that evaluate; 0 skips it.
        min_evaluate_nodes: evaluate on at least so many nodes, whatever the fraction gives, if they are there.
        min_available_nodes: wait until so many nodes are connected, at the beginning and when nobody is left to ask.
        weighted_by_key, arrayrecord_key, configrecord_key, train_metrics_aggr_fn, evaluate_metrics_aggr_fn, seed,
            node_timeout, max_failed_rounds: as for `FedAvg`.
        on_offline: ``"fail"``: only nodes that are connected are asked, and one that goes offline has failed, so that
            another gets its place; ``"wait"``: all that are known, and a message waits for its node.
    """

    def __init__(
        self,
        buffer_size: int,
        *,
        concurrency: int | None = None,
        evaluate_every: int = 1,
        fraction_evaluate: float = 1.0,
        min_evaluate_nodes: int = 1,
        min_available_nodes: int = 1,
        weighted_by_key: str = "num-examples",
        arrayrecord_key: str = "arrays",
        configrecord_key: str = "config",
        train_metrics_aggr_fn: MetricsAggregation | None = None,
        evaluate_metrics_aggr_fn: MetricsAggregation | None = None,
        on_offline: OnOffline = "fail",
        seed: int | None = None,
        node_timeout: float | None = 300.0,
        max_failed_rounds: int | None = 3,
    ) -> None:
        super().__init__(
            fraction_evaluate=fraction_evaluate,
            min_train_nodes=1,
            min_evaluate_nodes=min_evaluate_nodes,
            min_available_nodes=min_available_nodes,
            weighted_by_key=weighted_by_key,
            arrayrecord_key=arrayrecord_key,
            configrecord_key=configrecord_key,
            train_metrics_aggr_fn=train_metrics_aggr_fn,
            evaluate_metrics_aggr_fn=evaluate_metrics_aggr_fn,
            on_offline=on_offline,
            seed=seed,
            node_timeout=node_timeout,
            max_failed_rounds=max_failed_rounds,
        )
        numbers = {"buffer_size": buffer_size, "concurrency": concurrency, "evaluate_every": evaluate_every}
        for name, number in numbers.items():
            if number is not None and number < 1:
                raise ValueError(f"{name} must be at least 1, not {number}")
        self.buffer_size = buffer_size
        self.concurrency = concurrency
        self.evaluate_every = evaluate_every
        self._flight = InFlight()
        self._metrics = self._no_metrics()
        self._staleness: list[int] = []  # of what is in the buffer
        self._usable = 0  # replies since a resting node was asked again

    # -- what a subclass says ------------------------------------------------------------------------------------------

    @abstractmethod
    def take(self, reply: UsableReply, base: ArrayRecord, staleness: int) -> None:
        """Take a reply into the buffer. Nothing of it may be kept when it raises.

        Args:
            reply: it has passed the checks of `UsableReply`.
            base: the model that its node had been sent.
            staleness: the updates that the model has had since.

        Raises:
            InconsistentReply: it is of no use.
        """

    @abstractmethod
    def merge(self, model: ArrayRecord) -> ArrayRecord:
        """The new model, made of the current one and of the buffer, which is empty then."""

    def prepare(self, config: ConfigRecord) -> None:
        """Put into the config of the training messages what the nodes must know. Nothing by default."""

    # -- what has no place here ----------------------------------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Not for asynchronous strategies.

        Raises:
            StrategyError: always.
        """
        self._refuse()

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Not for asynchronous strategies.

        Raises:
            StrategyError: always.
        """
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise StrategyError(
            f"{type(self).__name__} trains asynchronously: it has no rounds in which all nodes get the same model, "
            "which is what a strategy that wraps it asks for"
        )

    # -- the loop ------------------------------------------------------------------------------------------------------

    def summary(self) -> None:
        """Log how the strategy is set up."""
        at_work = "all nodes" if self.concurrency is None else f"{self.concurrency} nodes"
        log.info("%s at work, an update for every %d replies", at_work, self.buffer_size)

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFn | None = None,
    ) -> Result:
        """Train until the model has had `num_rounds` updates; rounds that failed count too. See `Strategy.start`.

        Args:
            grid: the ServerApp's Grid.
            initial_arrays: the model before the first update.
            num_rounds: how many updates.
            timeout: seconds after which a message without a reply has failed.
            train_config: sent with every training message, with the round in progress as ``server-round``.
            evaluate_config: sent with every evaluation message, with the round evaluated as ``server-round``.
            evaluate_fn: called as ``evaluate_fn(round, arrays)`` before the first round (with 0), and after the others
                that `evaluate_every` names.

        Raises:
            NoUsableReplies: see `max_failed_rounds`; or no round at all had a usable reply.
            TooFewNodes: the nodes that the strategy waits for did not come.
            CheckpointError: the checkpoint is not of this strategy.
        """
        began = time.monotonic()
        self._grid = grid
        self._rounds, self._timeout, self._evaluate_fn = num_rounds, timeout, evaluate_fn
        self._train_config = ConfigRecord() if train_config is None else train_config
        self._evaluate_config = ConfigRecord() if evaluate_config is None else evaluate_config
        log.info("%s: %d updates", type(self).__name__, num_rounds)
        self.summary()

        grid.strategy_starts += 1
        grid.keeps_replies = True
        checkpoint = Checkpoint(grid, type(self).__name__, grid.strategy_starts)
        progress = checkpoint.read()
        if progress is None:
            progress = checkpoint.first(initial_arrays)
            self._flight = InFlight(models={0: initial_arrays})
            self._begin(grid, num_rounds, progress.result, evaluate_fn)
        else:
            self.load_state(progress.state)
            self._flight.models[self._flight.updates] = progress.result.arrays
            log.info("goes on after round %d, from the checkpoint", progress.round)
        self._checkpoint, self._progress = checkpoint, progress
        self._next_round()
        for reply in grid.pull_messages(self._flight.buffered) if self._flight.buffered else ():
            self._fold(reply)
        self._usable = 0
        if not self._flight.known and progress.round < num_rounds:
            self._look_around(grid)

        while progress.round < num_rounds:
            self._send_out(grid)
            if not self._flight.training:
                self._ask_again(grid)
                continue
            # Behind a checkpoint the replies that were received before it are received anew, as they would be by a
            # ServerApp that was started again there.
            before = progress.round
            for reply in grid._receive(self._flight.waiting, None):
                self._take_in(reply, grid)
                if progress.round != before:
                    break
        while self._flight.evaluations:
            for reply in grid._receive(self._flight.waiting, None):
                self._take_in(reply, grid)
        if self._flight.finished:
            self._save()

        if self.max_failed_rounds is not None and 0 < num_rounds <= progress.failed_rounds:
            raise NoUsableReplies(progress.failed_rounds, progress.last_failure, run_id=grid.run_id)
        log.info("%s: finished in %.2f s\n%r", type(self).__name__, time.monotonic() - began, progress.result)
        grid.publish(progress.result)
        return progress.result

    def save_state(self) -> RecordDict:
        """The state of the sampling, and what is under way."""
        return RecordDict({**super().save_state(), **self._flight.save()})

    def load_state(self, state: RecordDict) -> None:
        """Take up what `save_state` gave."""
        super().load_state(state)
        self._flight = InFlight.load(state)

    # -- messages out --------------------------------------------------------------------------------------------------

    def _look_around(self, grid: Grid) -> None:
        """Who may be asked. Waits for `min_available_nodes` if nobody is at work."""
        if self._flight.training:
            online = grid.get_node_ids()
        else:
            online = grid.wait_for_nodes(max(1, self.min_available_nodes), timeout=self.node_timeout)
        self._flight.known = grid.get_node_ids(online=False) if self.on_offline == "wait" else online

    def _send_out(self, grid: Grid) -> None:
        """Give work to as many idle nodes as are to be at work."""
        flight = self._flight
        free = (self.concurrency or len(self._flight.known)) - len(flight.training)
        idle = sorted(set(self._flight.known) - flight.busy() - flight.resting)
        if free < 1 or not idle:
            return
        self._train_config["server-round"] = self._round
        self.prepare(self._train_config)
        chosen = self._drawn(grid, idle, free)
        ids = self._push(grid, chosen, self._train_config, MessageType.TRAIN, self._round)
        flight.sent(ids, chosen)

    def _evaluate_at_nodes(self, grid: Grid, event: dict[str, JSON]) -> None:
        idle = sorted(set(self._flight.known) - self._flight.evaluating())
        size = max(int(len(self._flight.known) * self.fraction_evaluate), self.min_evaluate_nodes)
        if self.fraction_evaluate == 0.0 or not idle:
            return
        self._evaluate_config["server-round"] = self._round
        chosen = self._drawn(grid, idle, size)
        ids = self._push(grid, chosen, self._evaluate_config, MessageType.EVALUATE, self._round)
        self._flight.evaluations.append(Evaluation(self._round, event, ids, chosen, list(ids)))

    def _drawn(self, grid: Grid, nodes: list[str], size: int) -> list[str]:
        if self._sampler is None:
            self._sampler = Sampler(self.seed if self.seed is not None else _seed_of(grid))
        return self._sampler.sample(nodes, size)

    def _push(
        self, grid: Grid, nodes: list[str], config: ConfigRecord, message_type: str, server_round: int
    ) -> list[str]:
        content = RecordDict({self.arrayrecord_key: self._progress.result.arrays, self.configrecord_key: config})
        group = str(server_round)
        messages = [Message(content, node, message_type, ttl=self._timeout, group_id=group) for node in nodes]
        return grid.push_messages(messages, on_offline=self.on_offline)

    def _ask_again(self, grid: Grid) -> None:
        """Nobody is at work: those whose replies were of no use are asked again, and it counts if all were."""
        if self._flight.resting:
            if not self._usable:
                self._fail_round(grid)
            self._flight.resting.clear()
            self._usable = 0
        if self._progress.round < self._rounds:
            self._look_around(grid)

    # -- replies in ----------------------------------------------------------------------------------------------------

    def _take_in(self, reply: Message, grid: Grid) -> None:
        flight = self._flight
        message_id = reply.metadata.reply_to_message_id
        sent = flight.training.pop(message_id, None)
        if sent is None:
            if (evaluation := flight.evaluated(message_id)) is not None:
                self._complete(evaluation, grid)
            return
        flight.buffered[message_id] = sent
        if not self._fold(reply):
            del flight.buffered[message_id]
            flight.finished.append(message_id)
            flight.resting.add(sent.node)
        elif len(flight.buffered) >= self.buffer_size:
            self._update(grid)

    def _fold(self, reply: Message) -> bool:
        """Take a reply that is listed as buffered into the buffer; whether it was of use."""
        sent = self._flight.buffered[reply.metadata.reply_to_message_id]
        if reply.has_error():
            reason = reply.error.reason or "no reason was given"
            self.record_failure(reply, f"error {int(reply.error.code)}: {reason}")
            return False
        staleness = self._flight.updates - sent.version
        base = self._flight.models[sent.version]
        try:
            usable = UsableReply.of(restored(reply, RecordDict({self.arrayrecord_key: base})), self.weighted_by_key)
            self.take(usable, base, staleness)
        except InconsistentReply as exc:
            self.record_failure(reply, str(exc))
            return False
        self._metrics.add(usable)
        self._staleness.append(staleness)
        self._usable += 1
        return True

    def _complete(self, evaluation: Evaluation, grid: Grid) -> None:
        """All nodes have evaluated the model of a round."""
        before, self._round, self._phase = self._round, evaluation.round, "evaluate"
        failed = len(self._failures)
        replies = (reply for mid in evaluation.message_ids for reply in grid.pull_messages([mid]))
        metrics = self.aggregate_evaluate(evaluation.round, replies)
        failed = len(self._failures) - failed
        self._round, self._phase = before, "train"
        if metrics is not None:
            self._progress.result.evaluate_metrics_clientapp[evaluation.round] = metrics
        event = evaluation.event
        counts = {"replies": len(evaluation.message_ids) - failed, "failures": failed}
        added = {name: int(str(event[name])) + count for name, count in counts.items()}
        grid.emit("round", {**event, "evaluate": finite(metrics), **added})

    # -- the end of a round --------------------------------------------------------------------------------------------

    def _update(self, grid: Grid) -> None:
        result = self._progress.result
        result.arrays = self.merge(result.arrays)
        self._flight.updated(result.arrays)
        self._progress.failed_rounds = 0
        if (metrics := self._metrics.result()) is not None:
            result.train_metrics_clientapp[self._round] = metrics
        event = self._event("train", metrics)
        event["staleness"] = sum(self._staleness) / len(self._staleness)
        last = self._round >= self._rounds
        evaluates = last or self._round % self.evaluate_every == 0
        if not last:
            self._look_around(grid)
        if evaluates:
            self._evaluate_at_nodes(grid, event)
        if not last:
            # Before the server evaluates and saves: the nodes need not wait for that.
            self._send_out(grid)
        if evaluates and self._evaluate_fn is not None:
            self._evaluate_at_server(self._round, result, self._evaluate_fn)
            event["server"] = finite(result.evaluate_metrics_serverapp.get(self._round))
        self._end_round(grid, event)

    def _fail_round(self, grid: Grid) -> None:
        progress = self._progress
        progress.failed_rounds += 1
        last = self._failures[-1] if self._failures else None
        progress.last_failure = f"{last.node_id}: {last.reason}" if last is not None else "none arrived"
        log.warning("round %d: no reply could be used; the model stays as it was", self._round)
        if self.max_failed_rounds is not None and progress.failed_rounds >= self.max_failed_rounds:
            raise NoUsableReplies(progress.failed_rounds, progress.last_failure, run_id=grid.run_id)
        self._flight.resting.clear()
        self._end_round(grid, self._event("train", None))

    def _event(self, part: str, metrics: MetricRecord | None) -> dict[str, JSON]:
        failed = sum(failure.phase == "train" for failure in self._failures)
        return {
            "round": self._round,
            "rounds": self._rounds,
            "train": None,
            "evaluate": None,
            "server": None,
            "seconds": round(time.monotonic() - self._since, 6),
            "replies": len(self._staleness),
            "failures": failed,
            "unanswered": 0,
            part: finite(metrics),
        }

    def _end_round(self, grid: Grid, event: dict[str, JSON]) -> None:
        if self._round >= self._rounds:
            # Their replies would be of no use any more.
            grid.cancel(tuple(self._flight.training))
            if self._flight.buffered:
                self.merge(self._progress.result.arrays)  # lets go of them; nobody wants what it makes
            self._flight.finished += [*self._flight.training, *self._flight.buffered]
            self._flight.training.clear()
            self._flight.buffered.clear()
        grid.emit("round", event)
        log.info("%s", round_in_words(event))
        self._progress.round = self._round
        self._save()
        if not self._flight.buffered:
            self._metrics, self._staleness = self._no_metrics(), []
        self._next_round()

    def _next_round(self) -> None:
        self._round, self._phase, self._failures = self._progress.round + 1, "train", []
        self._since, self._usable = time.monotonic(), 0

    def _save(self) -> None:
        self._progress.state = self.save_state()
        self._checkpoint.write(self._progress, folded=self._flight.finished)
        self._flight.finished = []

    def _no_metrics(self) -> FoldedMetrics:
        return FoldedMetrics(self.weighted_by_key, self.train_metrics_aggr_fn)
