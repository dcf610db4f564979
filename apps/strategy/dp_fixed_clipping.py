"""Differential privacy with a clipping norm that stays as it is."""

from __future__ import annotations

from typing import Literal

from fedq.apps.arrayrecord import ArrayRecord
from fedq.apps.clipping import KEY_CLIPPING_NORM, clip_update, rounding_of, update_norm
from fedq.apps.configrecord import ConfigRecord
from fedq.apps.errors import InconsistentReply
from fedq.apps.outline import Outline
from fedq.apps.recorddict import RecordDict
from fedq.apps.strategy.dp_accountant import PrivacyAccountant
from fedq.apps.strategy.dp_wrapper import DifferentialPrivacy, one_array_record
from fedq.apps.strategy.strategy import Strategy


class FixedClipping(DifferentialPrivacy):
    """What both share: the clipping norm."""

    def __init__(
        self,
        strategy: Strategy,
        noise_multiplier: float,
        clipping_norm: float,
        num_sampled_clients: int,
        *,
        noise_seed: int | None = None,
        accountant: PrivacyAccountant | Literal[False] | None = None,
    ) -> None:
        super().__init__(strategy, noise_multiplier, num_sampled_clients, noise_seed, accountant)
        if not clipping_norm > 0.0:
            raise ValueError(f"clipping_norm must be above 0, not {clipping_norm}")
        self.clipping_norm = clipping_norm

    @property
    def norm(self) -> float:
        """The clipping norm."""
        return self.clipping_norm


class DifferentialPrivacyServerSideFixedClipping(FixedClipping):
    """Clips each update at the server, as it arrives, and adds noise to the average: see `DifferentialPrivacy`.

    Args:
        strategy: the strategy that is wrapped.
        noise_multiplier: standard deviation of the noise, in multiples of what one node can change; 1 or more for
            strong privacy, 0 for none.
        clipping_norm: the largest Euclidean norm that an update keeps.
        num_sampled_clients: how many nodes are asked in a round.
        noise_seed: of the noise, for tests: whoever knows it can take the noise off. None: a secret one.
        accountant: says which epsilon is reported. None: a `PrivacyAccountant` with its defaults, if its library is
            installed; False: none.
    """

    def admit(self, content: RecordDict, sent: ArrayRecord) -> tuple[RecordDict, bool]:
        """The reply with its update clipped."""
        name, arrays = one_array_record(content)
        made, clipped = clip_update(sent, arrays, self.clipping_norm)
        return RecordDict({**content, name: made}), clipped


class DifferentialPrivacyClientSideFixedClipping(FixedClipping):
    """Has the nodes clip their updates, and adds noise to the average: see `DifferentialPrivacy`.

    The nodes need `fedq.apps.mod.fixedclipping_mod` around their training function. They are told the clipping norm in
    the config of each training message, under ``"clipping_norm"``. A reply whose update is longer than that, beyond
    what rounding explains, counts as failed: the noise would not hide it.

    Args:
        strategy, noise_multiplier, clipping_norm, num_sampled_clients, noise_seed, accountant: as in
            `DifferentialPrivacyServerSideFixedClipping`.
    """

    def prepare(self, config: ConfigRecord) -> None:
        """Tell the nodes the clipping norm."""
        config[KEY_CLIPPING_NORM] = self.clipping_norm

    def admit(self, content: RecordDict, sent: ArrayRecord) -> tuple[RecordDict, bool]:
        """The reply as it is, if it was clipped."""
        check_clipped(one_array_record(content)[1], sent, self.clipping_norm, "fixedclipping_mod")
        return content, False


def check_clipped(arrays: ArrayRecord, sent: ArrayRecord, clipping_norm: float, mod: str) -> None:
    """Whether an update is within the clipping norm, but for the rounding of its dtype.

    Raises:
        InconsistentReply: it is not, or does not fit the model.
    """
    Outline(sent).checked(arrays)
    length = update_norm(sent, arrays)
    if not length <= clipping_norm * (1.0 + 1e-6) + rounding_of(arrays):
        raise InconsistentReply(
            f"its update has the norm {length:.4g}, beyond the clipping norm {clipping_norm:.4g}: put {mod} around the "
            "training function of the ClientApp"
        )
