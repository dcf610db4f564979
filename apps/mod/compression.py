"""A mod that makes replies smaller."""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

from fedq.apps.array import COMPRESSED, NUMPY, Array
from fedq.apps.arrayrecord import ArrayRecord
from fedq.apps.compression import Precision, check_compression, compressed, count_bytes, sparse
from fedq.apps.context import Context
from fedq.apps.message import Message
from fedq.apps.message_type import MessageType
from fedq.apps.mod.compose import ClientAppCallable

log = logging.getLogger(__name__)

STATE = "fedq.compression"
"""The ArrayRecord in the node's Context that holds what top-k left out so far."""


class CompressionMod:
    """Compresses the arrays of training replies; the server reads them without being told.

    - `precision`: floating values are rounded to float16 or bfloat16 on their way and have their dtype again at the
      server. An array with a value beyond the range of float16 stays as it is.
    - `top_k`: of each floating array only this share of elements travels: those in which the update (what was trained
      less what was sent) is largest. What is left out is kept in the node's Context and added to the next update: error
      feedback, S. U. Stich et al., "Sparsified SGD with Memory", 2018, https://arxiv.org/abs/1809.07599, algorithm 1.
      It is written with the reply or not at all, so that nothing is added twice. What a reply carried that the server
      left out, as one that came too late, is lost.
    - `zstd_level`: the bytes are compressed by Zstandard, losslessly.

    Every strategy gets whole arrays. Mods outside of this one see compressed ones (`arr.numpy()` reads those of
    `precision` and `zstd_level`, not the sparse ones of `top_k`): clipping and noise belong inside. Masked vectors of
    secure aggregation are random, and nothing makes them smaller. Each reply's sizes are logged, before and after.

    Args:
        precision: ``"float16"``, ``"bfloat16"`` or None.
        top_k: a share above 0 and up to 1, of which at least one element is sent; or None.
        zstd_level: 1 to 22, or None.

    Raises:
        MissingExtra: at the first reply, if ml_dtypes or zstandard is missing: ``pip install 'fedq[compression]'``.
    """

    def __init__(
        self, *, precision: Precision | None = None, top_k: float | None = None, zstd_level: int | None = None
    ) -> None:
        check_compression(precision, zstd_level)
        if top_k is not None and not 0.0 < top_k <= 1.0:
            raise ValueError(f"top_k must be a share above 0 and up to 1, not {top_k}")
        self.precision: Precision | None = precision
        self.top_k = top_k
        self.zstd_level = zstd_level

    def __call__(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        """Call what lies inside and compress the arrays of its reply."""
        if message.metadata.message_type.partition(".")[0] != MessageType.TRAIN:
            return call_next(message, context)
        sent = {name: array for record in message.content.array_records.values() for name, array in record.items()}
        reply = call_next(message, context)
        if reply.has_error():
            return reply
        before = count_bytes(reply.content.array_records)
        for key, record in list(reply.content.array_records.items()):
            reply.content[key] = ArrayRecord(
                {name: self._compressed(key, name, array, sent.get(name), context) for name, array in record.items()}
            )
        log.info("CompressionMod: %d bytes of arrays became %d", before, count_bytes(reply.content.array_records))
        return reply

    def _compressed(self, key: str, name: str, array: Array, base: Array | None, context: Context) -> Array:
        if self.top_k is not None and base is not None and _comparable(base, array):
            return self._sparse(f"{key}/{name}", array, base, context)
        return compressed(array, precision=self.precision, zstd_level=self.zstd_level)

    def _sparse(self, place: str, array: Array, base: Array, context: Context) -> Array:
        assert self.top_k is not None
        trained, model = array.numpy(copy=False), base.numpy(copy=False)
        update = trained.astype(np.float64, order="C").reshape(-1) - model.astype(np.float64, order="C").reshape(-1)
        if not np.isfinite(update).all():
            return array  # the server refuses it by its own rule; nothing of it is remembered
        kept = context.state.get(STATE)
        left: ArrayRecord = kept if isinstance(kept, ArrayRecord) else ArrayRecord()
        if place in left and left[place].shape == update.shape:
            update += left[place].numpy(copy=False)
        index = _largest(update, max(1, round(self.top_k * update.size)))
        made, values = sparse(base, update, index, precision=self.precision, zstd_level=self.zstd_level)
        update[index] -= values
        context.state[STATE] = ArrayRecord({**left, place: Array(update.astype(np.float32))})
        return made


def _comparable(base: Array, array: Array) -> bool:
    if (
        base.stype not in (NUMPY, COMPRESSED)
        or array.stype != NUMPY
        or base.shape != array.shape
        or base.dtype != array.dtype
    ):
        return False
    values = array.numpy(copy=False)
    return values.dtype.kind == "f" and values.size > 0


def _largest(update: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """The ascending places of so many elements of the largest magnitudes."""
    if count >= update.size:
        return np.arange(update.size)
    return np.sort(np.argpartition(np.abs(update), update.size - count)[update.size - count :])
