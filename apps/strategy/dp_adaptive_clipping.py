"""Differential privacy with a clipping norm that follows a quantile of the updates' norms."""

from __future__ import annotations

import logging
import math
from typing import Literal

from fedq.apps.arrayrecord import ArrayRecord
from fedq.apps.clipping import KEY_CLIPPING_NORM, KEY_NORM_BIT, clip_update
from fedq.apps.configrecord import ConfigRecord
from fedq.apps.errors import InconsistentReply
from fedq.apps.metricrecord import MetricRecord
from fedq.apps.recorddict import RecordDict
from fedq.apps.strategy.dp_accountant import PrivacyAccountant
from fedq.apps.strategy.dp_fixed_clipping import check_clipped
from fedq.apps.strategy.dp_wrapper import Admitted, DifferentialPrivacy, one_array_record
from fedq.apps.strategy.errors import CheckpointError
from fedq.apps.strategy.strategy import Strategy

log = logging.getLogger(__name__)


class AdaptiveClipping(DifferentialPrivacy):
    """What both share: G. Andrew, O. Thakkar, H. B. McMahan, S. Ramaswamy, "Differentially Private Learning with
    Adaptive Clipping", 2019, https://arxiv.org/abs/1905.03871, algorithm 1.

    After a round in which the share b of the updates was clipped, the clipping norm C moves towards the one which clips
    the wanted share q::

        b = (number clipped + normal(0, clipped_count_stddev)) / number of replies
        C = C * exp(clip_norm_lr * (b - q))

    The paper counts the updates that are *not* clipped and subtracts; this is the same. Flower counts those that are
    clipped and subtracts all the same, so that its norm moves away from the quantile. The noise of a round is made for
    the norm that clipped in it, as in the paper; that of Flower's server-side class for the next one.

    The count costs privacy too. So that both together cost what `noise_multiplier` z says, the arrays get the
    multiplier ``(z ** -2 - (2 * clipped_count_stddev) ** -2) ** -0.5`` (theorem 1); the attribute `noise_multiplier` is
    that one. The theorem takes the count as the sum of b - 1/2, so that a node that is left out moves it by 1/2; since
    the number of replies is not hidden, adding half of it changes nothing. What is accounted for is z.
    """

    def __init__(
        self,
        strategy: Strategy,
        noise_multiplier: float,
        num_sampled_clients: int,
        initial_clipping_norm: float = 0.1,
        target_clipped_quantile: float = 0.5,
        clip_norm_lr: float = 0.2,
        clipped_count_stddev: float | None = None,
        *,
        noise_seed: int | None = None,
        accountant: PrivacyAccountant | Literal[False] | None = None,
    ) -> None:
        super().__init__(strategy, noise_multiplier, num_sampled_clients, noise_seed, accountant)
        if not initial_clipping_norm > 0.0:
            raise ValueError(f"initial_clipping_norm must be above 0, not {initial_clipping_norm}")
        if not 0.0 <= target_clipped_quantile <= 1.0:
            raise ValueError(f"target_clipped_quantile must lie between 0 and 1, not {target_clipped_quantile}")
        if not clip_norm_lr > 0.0:
            raise ValueError(f"clip_norm_lr must be above 0, not {clip_norm_lr}")
        if clipped_count_stddev is not None and not clipped_count_stddev >= 0.0:
            raise ValueError(f"clipped_count_stddev must be at least 0, not {clipped_count_stddev}")
        self.clipping_norm = initial_clipping_norm
        self.target_clipped_quantile = target_clipped_quantile
        self.clip_norm_lr = clip_norm_lr
        if clipped_count_stddev is None:
            clipped_count_stddev = num_sampled_clients / 20.0 if noise_multiplier > 0.0 else 0.0
        self.clipped_count_stddev = clipped_count_stddev
        self.noise_multiplier = _multiplier_of_arrays(noise_multiplier, clipped_count_stddev)

    @property
    def norm(self) -> float:
        """The clipping norm of the round in progress."""
        return self.clipping_norm

    def adapt(self, server_round: int, admitted: list[Admitted]) -> None:
        """Move the clipping norm towards the quantile."""
        count = sum(reply.clipped for reply in admitted)
        noisy = count + self.generator(server_round, 1).normal(0.0, self.clipped_count_stddev)
        share = noisy / len(admitted)
        self.clipping_norm *= math.exp(self.clip_norm_lr * (share - self.target_clipped_quantile))
        log.info("round %d: the clipping norm is now %.4g", server_round, self.clipping_norm)

    def save_state(self) -> RecordDict:
        """That of the wrapped strategy, the seed of the noise and the clipping norm."""
        return RecordDict({**super().save_state(), "clipping": ConfigRecord({"norm": self.clipping_norm})})

    def load_state(self, state: RecordDict) -> None:
        """Take up what `save_state` gave."""
        super().load_state(state)
        record = state.get("clipping")
        kept = record.get("norm") if isinstance(record, ConfigRecord) else None
        if not isinstance(kept, float):
            raise CheckpointError("the checkpoint holds no clipping norm; start the run anew")
        self.clipping_norm = kept


class DifferentialPrivacyServerSideAdaptiveClipping(AdaptiveClipping):
    """Clips each update at the server, as it arrives, by a norm that adapts: see `AdaptiveClipping`.

    Args:
        strategy: the strategy that is wrapped.
        noise_multiplier: of arrays and count together, see `AdaptiveClipping`; 0 for no noise.
        num_sampled_clients: how many nodes are asked in a round.
        initial_clipping_norm: the first clipping norm; the paper begins at 0.1.
        target_clipped_quantile: the share of the updates that is to be clipped; the paper recommends a half.
        clip_norm_lr: how fast the norm moves; the paper recommends 0.2.
        clipped_count_stddev: standard deviation of the noise on the count. None: a twentieth of `num_sampled_clients`,
            as the paper recommends, or 0 without noise.
        noise_seed, accountant: as in `DifferentialPrivacyServerSideFixedClipping`.
    """

    def admit(self, content: RecordDict, sent: ArrayRecord) -> tuple[RecordDict, bool]:
        """The reply with its update clipped."""
        name, arrays = one_array_record(content)
        made, clipped = clip_update(sent, arrays, self.clipping_norm)
        return RecordDict({**content, name: made}), clipped


class DifferentialPrivacyClientSideAdaptiveClipping(AdaptiveClipping):
    """Has the nodes clip their updates by a norm that adapts: see `AdaptiveClipping`.

    The nodes need `fedq.apps.mod.adaptiveclipping_mod` around their training function. They are told the clipping norm
    in the config of each training message, under ``"clipping_norm"``, and say by the metric ``"norm_bit"`` whether
    their update was clipped; it does not become a metric of the round. A reply without it, or whose update is longer
    than the norm, counts as failed.

    Args:
        strategy, noise_multiplier, num_sampled_clients, initial_clipping_norm, target_clipped_quantile, clip_norm_lr,
        clipped_count_stddev, noise_seed, accountant: as in `DifferentialPrivacyServerSideAdaptiveClipping`.
    """

    def prepare(self, config: ConfigRecord) -> None:
        """Tell the nodes the clipping norm."""
        config[KEY_CLIPPING_NORM] = self.clipping_norm

    def admit(self, content: RecordDict, sent: ArrayRecord) -> tuple[RecordDict, bool]:
        """The reply without its norm bit, if it was clipped."""
        check_clipped(one_array_record(content)[1], sent, self.clipping_norm, "adaptiveclipping_mod")
        bits = [metrics[KEY_NORM_BIT] for metrics in content.metric_records.values() if KEY_NORM_BIT in metrics]
        if len(bits) != 1 or bits[0] not in (0, 1):
            raise InconsistentReply(
                f"it has no metric {KEY_NORM_BIT!r} of 0 or 1: put adaptiveclipping_mod around the training function "
                "of the ClientApp"
            )
        without = {
            name: MetricRecord({key: value for key, value in metrics.items() if key != KEY_NORM_BIT})
            for name, metrics in content.metric_records.items()
        }
        return RecordDict({**content, **without}), bits[0] == 1


def _multiplier_of_arrays(noise_multiplier: float, clipped_count_stddev: float) -> float:
    if noise_multiplier == 0.0:
        return 0.0
    if noise_multiplier >= 2.0 * clipped_count_stddev:
        raise ValueError(
            f"clipped_count_stddev {clipped_count_stddev} (by default a twentieth of num_sampled_clients) is too small "
            f"for a noise_multiplier of {noise_multiplier}: it must be above half of it; raise it or ask more nodes"
        )
    multiplier = float((noise_multiplier**-2 - (2.0 * clipped_count_stddev) ** -2) ** -0.5)
    if multiplier >= 2.0 * noise_multiplier:
        log.warning(
            "the count of clipped updates leaves little: the arrays get %.2f times the noise that noise_multiplier "
            "alone would ask for; raise clipped_count_stddev or ask more nodes",
            multiplier / noise_multiplier,
        )
    return multiplier
