"""FedAsync: asynchronous training in which each reply is mixed into the model."""

from __future__ import annotations

import math
from typing import Unpack

from fedq.apps.array import Array
from fedq.apps.arrayrecord import ArrayRecord
from fedq.apps.configrecord import ConfigRecord
from fedq.apps.outline import Outline
from fedq.apps.reals import from_reals_in_range, inexact, to_reals
from fedq.apps.strategy.asynchronous import Asynchronous, AsyncOptions
from fedq.apps.strategy.folding import UsableReply
from fedq.apps.strategy.staleness import Staleness, factor, polynomial_staleness


class FedAsync(Asynchronous):
    """C. Xie, S. Koyejo and I. Gupta, "Asynchronous Federated Optimization", 2019, https://arxiv.org/abs/1903.03934,
    algorithm 1: each reply makes an update,

        model <- (1 - a) * model + a * reply     with a = alpha * s(staleness)

    where s is one of the paper's functions (`constant_staleness`, `polynomial_staleness`, `hinge_staleness`) or your
    own. The result depends on the order in which replies arrive. Memory: see `Asynchronous`; and one reply.

    Args:
        alpha: above 0, up to 1.
        staleness: the function s. None: ``polynomial_staleness(0.5)``.
        proximal_mu: what the nodes find as ``proximal-mu`` in the config (see `FedProx`): the paper's rho. 0: nothing.
        options: those of `Asynchronous`, by name.
    """

    def __init__(
        self,
        alpha: float = 0.6,
        *,
        staleness: Staleness | None = None,
        proximal_mu: float = 0.0,
        **options: Unpack[AsyncOptions],
    ) -> None:
        super().__init__(1, **options)
        if not 0.0 < alpha <= 1.0:
            raise ValueError(f"alpha must be above 0 and at most 1, not {alpha}")
        if not (math.isfinite(proximal_mu) and proximal_mu >= 0.0):
            raise ValueError(f"proximal_mu must be at least 0, not {proximal_mu}")
        self.alpha = alpha
        self.staleness = polynomial_staleness(0.5) if staleness is None else staleness
        self.proximal_mu = proximal_mu
        self._reply = ArrayRecord()
        self._share = 0.0

    def prepare(self, config: ConfigRecord) -> None:
        """``proximal-mu``, if it is not 0."""
        if self.proximal_mu:
            config["proximal-mu"] = self.proximal_mu

    def take(self, reply: UsableReply, base: ArrayRecord, staleness: int) -> None:
        """Keep the reply for `merge`, which follows at once."""
        Outline(base).checked(reply.arrays)
        self._share = self.alpha * factor(self.staleness, staleness)
        self._reply = reply.arrays

    def merge(self, model: ArrayRecord) -> ArrayRecord:
        """The mixture."""
        made = ArrayRecord()
        for name, array in model.items():
            new = self._reply[name].numpy(copy=False)
            values = to_reals(array.numpy(copy=False)) * (1.0 - self._share) + to_reals(new) * self._share
            mixed = from_reals_in_range(values, inexact(new.dtype), new.shape)
            made[name] = Array.from_numpy_ndarray(mixed, copy=False)
        self._reply = ArrayRecord()
        return made
