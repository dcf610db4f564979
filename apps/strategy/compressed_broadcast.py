"""CompressedBroadcast: the model travels to the nodes with fewer bits than the server keeps."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import numpy as np

from fedq.apps.array import COMPRESSED, Array
from fedq.apps.arrayrecord import ArrayRecord
from fedq.apps.compression import Precision, check_compression, compressed
from fedq.apps.configrecord import ConfigRecord
from fedq.apps.grid import Grid
from fedq.apps.message import Message, make_message
from fedq.apps.metricrecord import MetricRecord
from fedq.apps.recorddict import RecordDict
from fedq.apps.replies import Replies
from fedq.apps.strategy.asynchronous import Asynchronous
from fedq.apps.strategy.strategy import Strategy

log = logging.getLogger(__name__)


class CompressedBroadcast(Strategy):
    """Wraps a strategy and compresses the model on its way to the nodes. ClientApps need no change.

    - `precision`: floating values are rounded to float16 or bfloat16 for the way, and have their dtype again at the
      node. What rounding takes off stays at the server: it is added to the model that the wrapped strategy makes of the
      replies, which has no part in it. So the server's model loses nothing (of FedAvg it is the old one plus the mean
      of what was learned), and steps that are smaller than the rounding add up until they are seen. An array with a
      value beyond the range of float16 travels as it is.
    - `zstd_level`: the bytes are compressed by Zstandard, losslessly. Of trained floats it takes off little; of trees,
      zeros and small integers much.

    The wrapped strategy is told that the rounded model was sent, which is true: what it makes of differences is right.
    The same model goes out for the evaluation of a round and for the next training: it crosses once. Mods at the nodes
    see ordinary values; `CompressionMod` makes replies smaller, this one what goes down.

    It is the outermost wrapper: around a differential-privacy wrapper or SecAggPlus, not inside of one. Resumes as the
    wrapped strategy does: nothing is kept beside the model.

    Memory, besides that of the wrapped strategy: the rounded model (m), and the small one.

    Args:
        strategy: what is wrapped.
        precision: ``"float16"``, ``"bfloat16"`` or None.
        zstd_level: 1 to 22, or None.

    Raises:
        TypeError: an asynchronous strategy, which sends its messages itself.
        MissingExtra: at the first round, if ml_dtypes or zstandard is missing: ``pip install 'fedq[compression]'``, at
            the nodes too.
    """

    wraps_all = True

    def __init__(
        self, strategy: Strategy, *, precision: Precision | None = None, zstd_level: int | None = None
    ) -> None:
        if not isinstance(strategy, Strategy) or strategy.wraps_all or isinstance(strategy, Asynchronous):
            raise TypeError(f"CompressedBroadcast wraps a strategy that has rounds, not {type(strategy).__name__}")
        check_compression(precision, zstd_level)
        self.strategy = strategy
        self.precision: Precision | None = precision
        self.zstd_level = zstd_level
        self.max_failed_rounds = strategy.max_failed_rounds
        self.reply_budget = strategy.reply_budget
        self.saves_before_first_round = strategy.saves_before_first_round
        strategy._outer = self
        self._model: ArrayRecord | None = None
        self._sent: ArrayRecord | None = None
        self._small: dict[int, Array] = {}  # by the identity of the rounded array

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Those of the wrapped strategy, with the rounded model. It becomes small when they are sent."""
        return self.strategy.configure_train(server_round, self._rounded(arrays), config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """What the wrapped strategy makes of the replies, and what rounding had taken off."""
        arrays, metrics = self.strategy.aggregate_train(server_round, replies)
        return (None if arrays is None else self._with_rest(arrays)), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Those of the wrapped strategy, with the rounded model. It becomes small when they are sent."""
        return self.strategy.configure_evaluate(server_round, self._rounded(arrays), config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """As the wrapped strategy does."""
        return self.strategy.aggregate_evaluate(server_round, replies)

    def stream_options(self, messages: int) -> dict[str, Any]:
        """Those of the wrapped strategy."""
        return self.strategy.stream_options(messages)

    def further_messages(self) -> Iterable[str]:
        """Those of the wrapped strategy."""
        return self.strategy.further_messages()

    def save_state(self) -> RecordDict:
        """That of the wrapped strategy."""
        return self.strategy.save_state()

    def load_state(self, state: RecordDict) -> None:
        """Take up what `save_state` gave."""
        self.strategy.load_state(state)

    def summary(self) -> None:
        """Log how the strategy is set up."""
        log.info("CompressedBroadcast: precision %s, zstd level %s", self.precision, self.zstd_level)
        self.strategy.summary()

    def _prepare(self, grid: Grid, timeout: float) -> None:
        super()._prepare(grid, timeout)
        self.strategy._prepare(grid, timeout)

    def _why(self, replies: Replies) -> str:
        return self.strategy._why(replies)

    def _rounded(self, arrays: ArrayRecord) -> ArrayRecord:
        """The model as the nodes read it. It is made once for what goes out of one model."""
        if self._sent is not None and self._model is arrays:
            return self._sent
        self._model, self._sent, self._small = arrays, ArrayRecord(), {}
        for name, array in arrays.items():
            small = compressed(array, precision=self.precision, zstd_level=self.zstd_level)
            whole = array
            if small.stype == COMPRESSED:
                whole = array if self.precision is None else Array.from_numpy_ndarray(small.numpy(), copy=False)
                self._small[id(whole)] = small
            self._sent[name] = whole
        log.info(
            "CompressedBroadcast: %d bytes of arrays became %d",
            arrays.count_bytes(),
            ArrayRecord({name: self._small.get(id(array), array) for name, array in self._sent.items()}).count_bytes(),
        )
        return self._sent

    def _outgoing(self, messages: list[Message]) -> list[Message]:
        made: dict[int, tuple[RecordDict, RecordDict]] = {}  # a content that goes to many nodes stays one
        smaller = []
        for message in messages:
            content = message.content
            if id(content) not in made:
                made[id(content)] = (content, self._small_content(content))
            smaller.append(make_message(message.metadata, made[id(content)][1]))
        return smaller

    def _small_content(self, content: RecordDict) -> RecordDict:
        records = RecordDict(dict(content.items()))
        for key, record in content.array_records.items():
            records[key] = ArrayRecord({name: self._small.get(id(array), array) for name, array in record.items()})
        return records

    def _with_rest(self, arrays: ArrayRecord) -> ArrayRecord:
        assert self._model is not None
        assert self._sent is not None
        made = ArrayRecord()
        for name, array in arrays.items():
            made[name] = array
            if (sent := self._sent.get(name)) is None or sent is self._model[name]:
                continue
            value, rounded = array.numpy(copy=False), sent.numpy(copy=False)
            if value.shape == rounded.shape and value.dtype.kind == "f":
                rest = self._model[name].numpy(copy=False).astype(np.float64) - rounded
                made[name] = Array.from_numpy_ndarray(np.asarray(value + rest).astype(value.dtype), copy=False)
        return made
