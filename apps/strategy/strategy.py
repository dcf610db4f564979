"""Strategy: the rounds of federated learning, with what a subclass decides left open."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from fedq.apps.arrayrecord import ArrayRecord
from fedq.apps.compression import restored
from fedq.apps.configrecord import ConfigRecord
from fedq.apps.errors import StrategyError
from fedq.apps.grid import JSON, Grid
from fedq.apps.message import Message
from fedq.apps.metricrecord import MetricRecord
from fedq.apps.recorddict import RecordDict
from fedq.apps.replies import Replies
from fedq.apps.strategy.checkpoint import Checkpoint, Progress, finite
from fedq.apps.strategy.errors import NoUsableReplies
from fedq.apps.strategy.partial import Partial, RosterGrid, Unfinished
from fedq.apps.strategy.result import Result
from fedq.apps.strategy.windowed import Room, WindowedReplies, array_bytes
from fedq.apps.strategy.words import round_in_words, size_in_words

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReplyFailure:
    """A reply that was not aggregated. `code` is that of an error reply, None when its content was of no use."""

    round: int
    phase: str
    node_id: str
    message_id: str
    reason: str
    code: int | None = None


class Strategy(ABC):
    """The loop of a federated run: choose nodes, send, aggregate what comes back, evaluate, keep a checkpoint.

    A subclass says whom to ask what (`configure_train`, `configure_evaluate`) and what to make of the replies
    (`aggregate_train`, `aggregate_evaluate`). The replies which it gets arrive while it iterates over them.

    One that keeps more than the arrays from round to round (momentum, say) also defines `save_state` and
    `load_state`, so that a run which was interrupted goes on as if it had not been.
    """

    max_failed_rounds: int | None = None
    """The run fails after this many training rounds in a row in which no reply could be used; None: never."""

    reply_budget: int | None = None
    """Bytes that the replies of a training round may take on the server, see `FedAvg`; None: as many as there are."""

    saves_before_first_round: bool = False
    """Whether a checkpoint is written before the first round: for a strategy whose first state is drawn at random."""

    wraps_all: bool = False
    """Whether it is a wrapper that stands outside of all others."""

    @abstractmethod
    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The messages of a training round; none skips it."""

    @abstractmethod
    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The new arrays and the metrics of a training round. None for the arrays keeps the old ones."""

    @abstractmethod
    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The messages of an evaluation round; none skips it."""

    @abstractmethod
    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """The metrics of an evaluation round, or None."""

    @abstractmethod
    def summary(self) -> None:
        """Log how the strategy is set up."""

    def save_state(self) -> RecordDict:
        """What the strategy needs, besides arrays and metrics, to go on after this round. Nothing by default."""
        return RecordDict()

    def load_state(self, state: RecordDict) -> None:  # noqa: B027 - optional, as save_state is
        """Take up what `save_state` gave."""

    def stream_options(self, messages: int) -> dict[str, Any]:
        """Keyword arguments of `Grid.stream` for a phase with this many messages. None by default."""
        return {}

    def further_messages(self) -> Iterable[str]:
        """Ids of messages of the round in progress which the strategy sent itself. None by default."""
        return ()

    def keep_partial(self, **parts: Partial) -> None:
        """Say what an aggregation has, so that a checkpoint in the midst of its round can hold it (`reply_budget`).

        To be called by `aggregate_train` before it looks at a reply. Where the round was interrupted, each part takes
        up what was kept of it; the replies that follow are those that are not in it.
        """
        self._keep_beside(**parts)
        if (unfinished := self._outermost._unfinished) is not None:
            unfinished.complete = True

    def _keep_beside(self, **parts: Partial) -> None:
        """The same for what a wrapper has, beside what the wrapped strategy is to say."""
        if (unfinished := self._outermost._unfinished) is not None:
            unfinished.add(parts)

    @property
    def _outermost(self) -> Strategy:
        return self if self._outer is None else self._outer._outermost

    @property
    def failures(self) -> tuple[ReplyFailure, ...]:
        """The replies of the round in progress that were not aggregated, as far as `record_failure` was told."""
        return self._outer.failures if self._outer is not None else tuple(self._failures)

    def record_failure(self, reply: Message, reason: str) -> None:
        """Count a reply as failed, log why and emit an event ``reply-failed``. For use in the aggregate methods."""
        if self._outer is not None:
            self._outer.record_failure(reply, reason)
            return
        failure = ReplyFailure(
            round=self._round,
            phase=self._phase,
            node_id=reply.metadata.src_node_id,
            message_id=reply.metadata.reply_to_message_id,
            reason=reason,
            code=int(reply.error.code) if reply.has_error() else None,
        )
        if not self._failures:
            self._failures = []  # of this object, not of the class
        self._failures.append(failure)
        log.warning("round %d, %s: the reply of %s is left out: %s", *_place(failure), failure.node_id, reason)
        if self._grid is not None:
            self._grid.emit(
                "reply-failed",
                {
                    "round": failure.round,
                    "phase": failure.phase,
                    "node": failure.node_id,
                    "message": failure.message_id,
                    "code": failure.code,
                    "reason": reason,
                },
            )

    # Set here and not in __init__, which subclasses need not call.
    _outer: Strategy | None = None  # the one that wraps this one, and keeps its failures
    _checkpoint: Checkpoint
    _unfinished: Unfinished | None = None  # in a training round with a budget
    _grid: Grid | None = None
    _round: int = 0
    _phase: str = ""
    _failures: list[ReplyFailure] = []  # noqa: RUF012 - replaced, never changed, on the class

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Run the rounds and return, and publish, their result.

        An event ``strategy`` tells the beginning. After each round an event ``round`` is emitted and a checkpoint
        written into ``grid.context``, by some strategies before the first round too. Where the Context holds a
        checkpoint already, since the run was interrupted, it continues behind that round; `initial_arrays` are not used
        then. A run may start several strategies, one after the other: each has its own checkpoint, told apart by the
        number of the call.

        Args:
            grid: the ServerApp's Grid.
            initial_arrays: the model before the first round.
            num_rounds: how many rounds.
            timeout: seconds after which a phase goes on without the replies that are missing; their messages are
                cancelled.
            train_config: sent with every training message.
            evaluate_config: sent with every evaluation message.
            evaluate_fn: called as ``evaluate_fn(round, arrays)`` before the first round (with 0) and after each.

        Raises:
            NoUsableReplies: see `max_failed_rounds`; or no training round at all had a usable reply.
            TooFewNodes: the nodes that the strategy waits for did not come.
            CheckpointError: the checkpoint is not of this strategy.
        """
        train_config = ConfigRecord() if train_config is None else train_config
        evaluate_config = ConfigRecord() if evaluate_config is None else evaluate_config
        self._grid = grid
        began = time.monotonic()
        log.info("%s: %d rounds, %s", type(self).__name__, num_rounds, _size(initial_arrays))
        self.summary()

        grid.strategy_starts += 1
        self._checkpoint = checkpoint = Checkpoint(grid, type(self).__name__, grid.strategy_starts)
        progress = checkpoint.read()
        if progress is None:
            progress = checkpoint.first(initial_arrays)
            self._begin(grid, num_rounds, progress.result, evaluate_fn)
            if self.saves_before_first_round:
                progress.state = self.save_state()
                checkpoint.write(progress, folded=())
        else:
            # No event here: behind a checkpoint the events of a run that goes on are those of one that never stopped.
            self.load_state(progress.state)
            where = "in the midst of the next one" if progress.unfinished else "from the checkpoint"
            log.info("goes on after round %d, %s", progress.round, where)
        del initial_arrays  # from the second round on nothing needs them
        result = progress.result

        for server_round in range(progress.round + 1, num_rounds + 1):
            since = time.monotonic()
            self._round, self._failures = server_round, []
            train = self._train(server_round, grid, timeout, train_config, progress)
            evaluate = self._evaluate(server_round, grid, timeout, evaluate_config, result)
            if evaluate_fn is not None:
                self._evaluate_at_server(server_round, result, evaluate_fn)
            failed = train.errors | evaluate.errors | {failure.message_id for failure in self._failures}
            arrived = len(train.arrived) + len(evaluate.arrived)
            event: dict[str, JSON] = {
                "round": server_round,
                "rounds": num_rounds,
                "train": finite(result.train_metrics_clientapp.get(server_round)),
                "evaluate": finite(result.evaluate_metrics_clientapp.get(server_round)),
                "server": finite(result.evaluate_metrics_serverapp.get(server_round)),
                "seconds": round(time.monotonic() - since, 6),
                "replies": arrived - len(failed),
                "failures": len(failed),
                "unanswered": len(train.unanswered) + train.unsent + len(evaluate.unanswered),
            }
            grid.emit("round", event)
            log.info("%s", round_in_words(event))
            progress.round, progress.state = server_round, self.save_state()
            checkpoint.write(progress, folded=(*train.message_ids, *evaluate.message_ids, *self.further_messages()))

        if self.max_failed_rounds is not None and 0 < num_rounds <= progress.failed_rounds:
            raise NoUsableReplies(progress.failed_rounds, progress.last_failure, run_id=grid.run_id)
        log.info("%s: finished in %.2f s\n%r", type(self).__name__, time.monotonic() - began, result)
        grid.publish(result)
        return result

    def _begin(
        self,
        grid: Grid,
        num_rounds: int,
        result: Result,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None,
    ) -> None:
        if evaluate_fn is not None:
            self._evaluate_at_server(0, result, evaluate_fn)
        grid.emit(
            "strategy",
            {
                "strategy": type(self).__name__,
                "rounds": num_rounds,
                "server": finite(result.evaluate_metrics_serverapp.get(0)),
            },
        )

    def _train(
        self,
        server_round: int,
        grid: Grid,
        timeout: float,
        config: ConfigRecord,
        progress: Progress,
    ) -> Replies:
        result = progress.result
        self._phase = "train"
        self._prepare(grid, timeout)
        if self.reply_budget is None and not progress.unfinished:
            messages = list(self.configure_train(server_round, result.arrays, config, grid))
            replies = self._send(messages, grid, timeout)
        else:
            messages, replies = self._send_within_budget(server_round, grid, timeout, config, progress)
        sent = {message.metadata.dst_node_id: message.content for message in messages}
        replies.restore = lambda reply: restored(reply, sent[reply.metadata.src_node_id])
        arrays, metrics = self.aggregate_train(server_round, replies)
        self._end(replies, grid)
        replies.restore = None  # which knows the model that was sent; the replies outlast the round
        if self._unfinished is not None:
            self._unfinished.close()
        self._unfinished, progress.unfinished = None, RecordDict()
        if arrays is not None:
            result.arrays = arrays
            progress.failed_rounds = 0
        elif replies:
            progress.failed_rounds += 1
            progress.last_failure = self._why(replies)
            log.warning("round %d: no reply could be used; the model stays as it was", server_round)
            if self.max_failed_rounds is not None and progress.failed_rounds >= self.max_failed_rounds:
                raise NoUsableReplies(progress.failed_rounds, progress.last_failure, run_id=grid.run_id)
        if metrics is not None:
            result.train_metrics_clientapp[server_round] = metrics
        return replies

    def _evaluate(self, server_round: int, grid: Grid, timeout: float, config: ConfigRecord, result: Result) -> Replies:
        self._phase = "evaluate"
        replies = self._send(self.configure_evaluate(server_round, result.arrays, config, grid), grid, timeout)
        metrics = self.aggregate_evaluate(server_round, replies)
        self._end(replies, grid)
        if metrics is not None:
            result.evaluate_metrics_clientapp[server_round] = metrics
        return replies

    def _evaluate_at_server(
        self, server_round: int, result: Result, evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None]
    ) -> None:
        metrics = evaluate_fn(server_round, result.arrays)
        if metrics is not None:
            result.evaluate_metrics_serverapp[server_round] = metrics

    def _send(self, messages: Iterable[Message], grid: Grid, timeout: float) -> Replies:
        messages = self._outgoing(list(messages))
        if not messages:
            return Replies(grid, (), iter(()))
        return grid.stream(messages, timeout=timeout, **self.stream_options(len(messages)))

    def _outgoing(self, messages: list[Message]) -> list[Message]:
        """The messages as they are sent, which a wrapper may change."""
        return messages if self._outer is None else self._outer._outgoing(messages)

    def _send_within_budget(
        self, server_round: int, grid: Grid, timeout: float, config: ConfigRecord, progress: Progress
    ) -> tuple[list[Message], Replies]:
        """The messages of a training round, and replies of which only so many are on the server as it has room for."""
        unfinished = self._unfinished = Unfinished(progress.unfinished)
        before = self.save_state()
        roster = RosterGrid(grid, unfinished.rosters)
        messages = list(self.configure_train(server_round, progress.result.arrays, config, roster))
        self._failures = [ReplyFailure(**failure) for failure in unfinished.failures]
        if not messages:
            return messages, self._send(messages, grid, timeout)
        room = None if self.reply_budget is None else Room(self.reply_budget, messages)
        grid.keeps_replies = True

        def save(replies: dict[str, JSON], freed: list[str]) -> None:
            if not unfinished.complete:
                raise StrategyError(
                    f"{type(self).__name__} does not say what it has made of the replies so far, so that none can be "
                    "freed: give `fold` what it sums up in as `partial`, or do without reply_budget",
                    run_id=grid.run_id,
                )
            parts = unfinished.parts()
            if room is not None:
                room.aggregate = replies["aggregate"] = max(room.aggregate, array_bytes(parts))
            progress.state = before
            progress.unfinished = RecordDict({**parts, **unfinished.told(roster.rosters, replies, self._failures)})
            self._checkpoint.write(progress, folded=freed)

        options = self.stream_options(len(messages))
        sent = self._outgoing(messages)
        return messages, WindowedReplies(grid, sent, room, save, unfinished.replies, timeout=timeout, **options)

    def _end(self, replies: Replies, grid: Grid) -> None:
        len(replies)  # a strategy need not look at all of them, the nodes are waited for all the same
        # A late reply would belong to a round that is over. Without this the node would still work on it.
        if unanswered := replies.unanswered:
            grid.cancel(unanswered)

    def _prepare(self, grid: Grid, timeout: float) -> None:
        """Called before a training round is configured, of a wrapped strategy too."""
        self._grid = grid

    def _why(self, replies: Replies) -> str:
        if failures := self.failures:
            last = failures[-1]
            return f"{last.node_id}: {last.reason}"
        if not replies.arrived:
            return "none arrived in time"
        return "all were errors" if replies.errors else f"{type(self).__name__} could not make a model of those it had"


def _place(failure: ReplyFailure) -> tuple[int, str]:
    return failure.round, failure.phase


def _size(arrays: ArrayRecord) -> str:
    return f"{len(arrays)} arrays of {size_in_words(arrays.count_bytes())}"
