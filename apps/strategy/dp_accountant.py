"""PrivacyAccountant: the epsilon that the rounds of a differentially private strategy have spent so far."""

from __future__ import annotations

import json
import logging
from importlib.util import find_spec
from typing import Any, Literal

from fedq.apps.extras import require

log = logging.getLogger(__name__)

Neighbours = Literal["zero-out", "replace"]


class PrivacyAccountant:
    """Adds up what rounds of the Gaussian mechanism cost, by Rényi differential privacy, with Google's dp-accounting.

    The guarantee is (epsilon, delta) for a whole *node*, over all models that a run has released so far: whoever sees
    them all cannot tell well whether the data of any one node had gone into them. It is for neighbours which are

    - ``"zero-out"`` (the default): the node's update replaced by none, its place and weight kept (P. Kairouz et al.,
      "Practical and Private (Deep) Learning without Sampling or Shuffling", 2021, definition 1.1, where dp-accounting
      calls it REPLACE_SPECIAL). One update of norm C moves the average by its share of C, which is what the noise
      multiplier of the wrappers is relative to. A round costs what a Gaussian of that multiplier costs.
    - ``"replace"``: the node's data replaced by any other, of the same weight. That moves the average by twice as
      much, so that a round is one with half of the multiplier.

    Who took part, when, and with which weight (the number of examples) is taken for known: it is not hidden. Nor are
    metrics; see `DifferentialPrivacy`.

    **Sampling.** A strategy with ``fraction_train`` below 1 draws a sample of fixed size without replacement (not a
    Poisson sample). That makes a round cheaper only towards somebody who cannot know who was in it, so that it counts
    only with `secret_sample`: the wrapper then takes a secret seed for the sampling, where the default follows from the
    run's number, and it is for you to keep logs, journals and traffic from whoever sees the models. All nodes must have
    the same weight. A round counts as sampled if every node of the sample answered, with equal weights; any other
    counts in full. The bound for a sample of fixed size (Y. Wang, B. Balle, S. Kasiviswanathan, "Subsampled Rényi
    Differential Privacy and Analytical Moments Accountant", 2019) is one for ``"replace"``, which implies that for
    ``"zero-out"``: of the two bounds the smaller is given.

    Args:
        delta: the probability that the guarantee does not hold. It should be far below one over the number of nodes:
            a larger one is warned about.
        neighbours: see above.
        secret_sample: whether who was asked stays a secret.

    Raises:
        MissingExtra: dp-accounting is not installed (``pip install 'fedq[dp]'``).
    """

    def __init__(
        self, delta: float = 1e-5, *, neighbours: Neighbours = "zero-out", secret_sample: bool = False
    ) -> None:
        if not 0.0 < delta < 1.0:
            raise ValueError(f"delta must lie between 0 and 1, not {delta}")
        if neighbours not in ("zero-out", "replace"):
            raise ValueError(f"neighbours must be 'zero-out' or 'replace', not {neighbours!r}")
        self.delta = delta
        self.neighbours = neighbours
        self.secret_sample = secret_sample
        self._rounds: dict[tuple[float, int, int], int] = {}
        self._dp: Any = None
        self._rdp: Any = None
        self._reset()

    @staticmethod
    def available() -> bool:
        """Whether the library is installed."""
        return find_spec("dp_accounting") is not None

    @property
    def rounds(self) -> int:
        """How many rounds were added."""
        return sum(self._rounds.values())

    def add(self, noise_multiplier: float, *, sample: int = 1, nodes: int = 1, count: int = 1) -> None:
        """Add rounds.

        Args:
            noise_multiplier: standard deviation of the noise in multiples of what one node moves; above 0.
            sample: how many nodes were asked, and answered with equal weights.
            nodes: of how many they were drawn. Equal to `sample`: a round that counts in full.
            count: how many rounds of that kind.
        """
        if not noise_multiplier > 0.0:
            raise ValueError(f"noise_multiplier must be above 0, not {noise_multiplier}")
        if not 0 < sample <= nodes:
            raise ValueError(f"{sample} nodes cannot be drawn of {nodes}")
        if not self.secret_sample or sample == nodes:
            sample = nodes = 1
        kind = (noise_multiplier, sample, nodes)
        self._rounds[kind] = self._rounds.get(kind, 0) + count
        self._compose(*kind, count)

    @property
    def epsilon(self) -> float:
        """What was spent so far, for `delta`; 0.0 before the first round."""
        if not self._rounds:
            return 0.0
        spent = [accountant.get_epsilon(self.delta) for accountant in self._accountants.values()]
        return float(min(spent))

    @property
    def state(self) -> str:
        """The rounds as text, for a checkpoint."""
        return json.dumps([[*kind, count] for kind, count in self._rounds.items()])

    @state.setter
    def state(self, text: str) -> None:
        rounds = [(float(z), int(sample), int(nodes), int(count)) for z, sample, nodes, count in json.loads(text)]
        self._rounds = {}
        self._reset()
        for multiplier, sample, nodes, count in rounds:
            self._rounds[multiplier, sample, nodes] = count
            self._compose(multiplier, sample, nodes, count)

    def _reset(self) -> None:
        purpose = "epsilon is computed by dp-accounting"
        self._dp = require("dp_accounting", "dp", purpose)
        self._rdp = require("dp_accounting.rdp", "dp", purpose)
        relation = self._dp.NeighboringRelation
        self._accountants: dict[str, Any] = {"replace": self._rdp.RdpAccountant(None, relation.REPLACE_ONE)}
        if self.neighbours == "zero-out":
            self._accountants["zero-out"] = self._rdp.RdpAccountant(None, relation.REPLACE_SPECIAL)

    def _compose(self, multiplier: float, sample: int, nodes: int, count: int) -> None:
        for neighbours, accountant in self._accountants.items():
            if neighbours == "zero-out":
                event = self._dp.GaussianDpEvent(multiplier)
            else:
                event = self._dp.GaussianDpEvent(multiplier / 2.0)
                if sample < nodes:
                    event = self._dp.SampledWithoutReplacementDpEvent(nodes, sample, event)
            accountant.compose(event, count)
