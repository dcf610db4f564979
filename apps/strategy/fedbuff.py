"""FedBuff: asynchronous training with a buffer of updates."""

from __future__ import annotations

import math
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from fedq.apps.array import Array
from fedq.apps.arrayrecord import ArrayRecord
from fedq.apps.outline import Outline
from fedq.apps.reals import from_reals_in_range, inexact, to_reals, wider
from fedq.apps.strategy.asynchronous import Asynchronous, AsyncOptions
from fedq.apps.strategy.averaging import ArrayAverage
from fedq.apps.strategy.folding import UsableReply
from fedq.apps.strategy.staleness import Staleness, factor, polynomial_staleness


class FedBuff(Asynchronous):
    """J. Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation", 2021,
    https://arxiv.org/abs/2106.06639, algorithm 1: when K replies are in the buffer,

        model <- model + eta / K * sum over them of s(staleness) * (reply - the model its node had been sent)

    with ``s = 1 / sqrt(1 + staleness)`` as in the paper. (There the node sends the difference; here it sends its model,
    as for FedAvg, and the server takes the difference.) With ``by_examples`` the mean of the K is one weighted by
    `weighted_by_key`, with nodes of unequal size, as in FedAvg.

    The sum is exact: the order of arrival within a buffer does not change a bit. Memory: see `Asynchronous`; and a sum
    of two models of float32.

    Args:
        buffer_size: K.
        server_learning_rate: eta.
        staleness: the function s; see `fedq.apps.strategy.staleness`.
        by_examples: weigh replies by their number of examples.
        options: those of `Asynchronous`, by name.
    """

    def __init__(
        self,
        buffer_size: int = 10,
        *,
        server_learning_rate: float = 1.0,
        staleness: Staleness | None = None,
        by_examples: bool = False,
        **options: Unpack[AsyncOptions],
    ) -> None:
        super().__init__(buffer_size, **options)
        if not server_learning_rate > 0.0:
            raise ValueError(f"server_learning_rate must be above 0, not {server_learning_rate}")
        self.server_learning_rate = server_learning_rate
        self.staleness = polynomial_staleness(0.5) if staleness is None else staleness
        self.by_examples = by_examples
        self._sum: ArrayAverage | None = None
        self._shares: list[float] = []
        self._dtypes: dict[str, np.dtype[Any]] = {}

    def take(self, reply: UsableReply, base: ArrayRecord, staleness: int) -> None:
        """Add the difference to the sum."""
        arrays = Outline(base).checked(reply.arrays)
        difference = ArrayRecord(
            {name: Array.from_numpy_ndarray(_minus(array, base[name].numpy(copy=False)), copy=False)
             for name, array in arrays.items()}
        )  # fmt: skip
        share = reply.weight if self.by_examples else 1.0
        if self._sum is None:
            self._sum = ArrayAverage(base)
        self._sum.add(difference, share * factor(self.staleness, staleness))
        self._shares.append(share)
        for name, array in arrays.items():
            self._dtypes[name] = wider(self._dtypes.get(name), inexact(array.dtype))

    def merge(self, model: ArrayRecord) -> ArrayRecord:
        """A step along the mean of the buffer."""
        assert self._sum is not None
        mean = self._sum.result(over=math.fsum(self._shares))
        assert mean is not None
        made = ArrayRecord()
        for name, array in model.items():
            values = to_reals(array.numpy(copy=False))
            values += self.server_learning_rate * to_reals(mean[name].numpy(copy=False))
            moved = from_reals_in_range(values, self._dtypes[name], tuple(array.shape))
            made[name] = Array.from_numpy_ndarray(moved, copy=False)
        self._sum, self._shares, self._dtypes = None, [], {}
        return made


def _minus(array: NDArray[Any], base: NDArray[Any]) -> NDArray[Any]:
    dtype = np.complex128 if array.dtype.kind == "c" else np.float64
    result: NDArray[Any] = np.asarray(array.astype(dtype) - base.astype(dtype))
    return result
