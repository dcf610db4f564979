"""Mods that clip what a node has learned before it leaves the node."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from fedq.apps.arrayrecord import ArrayRecord
from fedq.apps.clipping import KEY_CLIPPING_NORM, KEY_NORM_BIT, add_gaussian_noise, clip_update
from fedq.apps.compression import restored
from fedq.apps.context import Context
from fedq.apps.error import Error, ErrorCode
from fedq.apps.errors import InconsistentReply
from fedq.apps.extras import require
from fedq.apps.message import Message
from fedq.apps.message_type import MessageType
from fedq.apps.metricrecord import MetricRecord
from fedq.apps.mod.compose import ClientAppCallable
from fedq.apps.recorddict import RecordDict
from fedq.apps.secagg import stages

log = logging.getLogger(__name__)


def fixedclipping_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Clip the update of a training reply to the norm that the server asked for.

    For `DifferentialPrivacyClientSideFixedClipping`, which puts ``"clipping_norm"`` into the config. What the function
    inside trained comes out as ``sent + update * min(1, clipping_norm / ||update||)``; put it outside of any mod that
    changes arrays. Messages that are not of the type ``train`` pass as they are.

    The reply is an error (``MOD_FAILED_PRECONDITION``) when the message has not exactly one ArrayRecord and one
    ConfigRecord with a positive clipping norm, or the reply not exactly one ArrayRecord, of finite values, with the
    names and shapes of the one that was sent.
    """
    return _clipped("fixedclipping_mod", message, context, call_next, tell=False)


def adaptiveclipping_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """As `fixedclipping_mod`; it also adds the metric ``"norm_bit"``: 1 if the update was clipped, else 0.

    For `DifferentialPrivacyClientSideAdaptiveClipping`. The reply needs exactly one MetricRecord too.
    """
    return _clipped("adaptiveclipping_mod", message, context, call_next, tell=True)


class ClippingMod:
    """Clips the update of a training reply to a norm of the data owner's own, whatever the server asks for.

    What the function inside trained comes out as ``sent + update * min(1, clipping_norm / ||update||)``. Messages that
    are not of the type ``train`` pass as they are; errors are those of `fixedclipping_mod`, but that no config is
    needed.

    Args:
        clipping_norm: the largest Euclidean norm that an update keeps.
    """

    def __init__(self, clipping_norm: float) -> None:
        if not clipping_norm > 0.0:
            raise ValueError(f"clipping_norm must be above 0, not {clipping_norm}")
        self.clipping_norm = clipping_norm

    def __call__(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        """Call what lies inside and clip its update."""

        def clip(update: _Update) -> ArrayRecord:
            return clip_update(update.sent, update.trained, self.clipping_norm)[0]

        return _around("ClippingMod", message, context, call_next, lambda asked: clip)


class LocalDpMod:
    """Clips the update of a training reply and adds Gaussian noise to it: local differential privacy.

    The standard deviation is ``sensitivity * sqrt(2 * ln(1.25 / delta)) / epsilon``: C. Dwork, A. Roth, "The
    Algorithmic Foundations of Differential Privacy", 2014, theorem A.1, which holds for an epsilon below 1 (a larger
    one is warned about). It is what one reply costs; a node that replies n times pays n times, by simple composition,
    or what `spent` says.

    Messages that are not of the type ``train`` pass as they are; errors are those of `fixedclipping_mod`, but that no
    config is needed.

    Args:
        clipping_norm: the largest Euclidean norm that an update keeps.
        sensitivity: by how much the update of one example more or less can move the result; ``2 * clipping_norm``
            covers any exchange of the whole data.
        epsilon: the budget of one reply, above 0.
        delta: the probability that the budget is not kept, between 0 and 1.
        seed: noise that follows from it, the node and the message, for tests: whoever knows it can take the noise off.
            None: from the system's randomness, new at each execution.
    """

    def __init__(
        self, clipping_norm: float, sensitivity: float, epsilon: float, delta: float, *, seed: int | None = None
    ) -> None:
        if not clipping_norm > 0.0:
            raise ValueError(f"clipping_norm must be above 0, not {clipping_norm}")
        if not sensitivity >= 0.0:
            raise ValueError(f"sensitivity must be at least 0, not {sensitivity}")
        if not epsilon > 0.0:
            raise ValueError(f"epsilon must be above 0, not {epsilon}")
        if not 0.0 < delta < 1.0:
            raise ValueError(f"delta must lie between 0 and 1, not {delta}")
        if epsilon >= 1.0:
            log.warning("the Gaussian mechanism keeps its promise for an epsilon below 1, not for %g", epsilon)
        self.clipping_norm = clipping_norm
        self.sensitivity = sensitivity
        self.epsilon = epsilon
        self.delta = delta
        self.seed = seed

    @property
    def deviation(self) -> float:
        """The standard deviation of the noise."""
        return self.sensitivity * math.sqrt(2.0 * math.log(1.25 / self.delta)) / self.epsilon

    def spent(self, replies: int, *, delta: float) -> float:
        """The epsilon, at this delta, of so many replies of one node; less than the sum of what each costs.

        For neighbours as far apart as `sensitivity` says. By Rényi differential privacy, from Google's dp-accounting;
        it holds for a large epsilon too.

        Raises:
            MissingExtra: dp-accounting is not installed (``pip install 'fedq[dp]'``).
        """
        if replies == 0 or self.sensitivity == 0.0:
            return 0.0
        dp = require("dp_accounting", "dp", "epsilon is computed by dp-accounting")
        accountant = require("dp_accounting.rdp", "dp", "epsilon is computed by dp-accounting").RdpAccountant()
        accountant.compose(dp.GaussianDpEvent(self.deviation / self.sensitivity), replies)
        return float(accountant.get_epsilon(delta))

    def __call__(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        """Call what lies inside, clip its update and add the noise."""

        def noised(update: _Update) -> ArrayRecord:
            clipped, _ = clip_update(update.sent, update.trained, self.clipping_norm)
            made = add_gaussian_noise(clipped, self.deviation, self._generator(message, context))
            log.info("LocalDpMod: clipped to %.4g, noise of deviation %.4g", self.clipping_norm, self.deviation)
            return made

        return _around("LocalDpMod", message, context, call_next, lambda asked: noised)

    def _generator(self, message: Message, context: Context) -> np.random.Generator:
        if self.seed is None:
            return np.random.default_rng()
        place = f"{context.run_id}/{context.node_id}/{message.metadata.message_id}".encode()
        digest = hashlib.blake2b(place, digest_size=16).digest()
        return np.random.default_rng([self.seed, int.from_bytes(digest, "little")])


@dataclass(frozen=True)
class _Update:
    """What was sent, what was trained, and the content of the reply that holds the latter."""

    sent: ArrayRecord
    trained: ArrayRecord
    content: RecordDict


_Change: TypeAlias = Callable[[_Update], ArrayRecord]


def _around(
    mod: str,
    message: Message,
    context: Context,
    call_next: ClientAppCallable,
    prepared: Callable[[RecordDict], _Change],
) -> Message:
    """Put in the place of what was trained what a change makes of it; `prepared` gives it, from what was asked.

    What cannot be read here is not let out: the reply is an error then.
    """
    if message.metadata.message_type.partition(".")[0] != MessageType.TRAIN:
        return call_next(message, context)
    try:
        if stages.RECORD in message.content:
            raise InconsistentReply(
                "the app masks its update (secure aggregation), so that nobody outside can tell how large it is; put "
                "secaggplus_mod outside of this mod, among those of the app or, where a node imposes this one, with "
                "--mod fedq.apps.mod:secaggplus_mod in front of it"
            )
        name, record = _one_array_record(message.content, "the message")
        # A copy of the record, since the app may change the one it is given. Arrays themselves cannot be changed.
        sent = ArrayRecord(dict(record))
        change = prepared(message.content)
    except InconsistentReply as exc:
        return _refused(mod, message, str(exc))
    reply = call_next(message, context)
    if reply.has_error():
        return reply
    try:
        whole = restored(reply, RecordDict({name: sent}))  # the app may send the largest elements only
        name, trained = _one_array_record(whole.content, "the reply")
        reply.content[name] = change(_Update(sent, trained, reply.content))
    except InconsistentReply as exc:
        return _refused(mod, message, str(exc))
    return reply


def _clipped(mod: str, message: Message, context: Context, call_next: ClientAppCallable, *, tell: bool) -> Message:
    """Clip to the norm that the server asked for; `tell` it whether that changed the update."""

    def prepared(asked: RecordDict) -> _Change:
        norm = _norm_asked_for(asked)

        def clip(update: _Update) -> ArrayRecord:
            metrics = _one_metric_record(update.content) if tell else None
            clipped, longer = clip_update(update.sent, update.trained, norm)
            if metrics is not None:
                metrics[KEY_NORM_BIT] = int(longer)
            log.info("%s: the update was %s the norm %.4g", mod, "clipped to" if longer else "within", norm)
            return clipped

        return clip

    return _around(mod, message, context, call_next, prepared)


def _norm_asked_for(content: RecordDict) -> float:
    configs = list(content.config_records.values())
    if len(configs) != 1:
        raise InconsistentReply(f"the message has {len(configs)} ConfigRecords instead of one")
    value = configs[0].get(KEY_CLIPPING_NORM)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0.0:
        raise InconsistentReply(
            f"the config of the message has no {KEY_CLIPPING_NORM!r} above 0: the ServerApp must wrap its strategy in "
            "DifferentialPrivacyClientSideFixedClipping or DifferentialPrivacyClientSideAdaptiveClipping"
        )
    return float(value)


def _one_array_record(content: RecordDict, where: str) -> tuple[str, ArrayRecord]:
    records = content.array_records
    if len(records) != 1:
        raise InconsistentReply(f"{where} has {len(records)} ArrayRecords instead of one")
    ((name, arrays),) = records.items()
    return name, arrays


def _one_metric_record(content: RecordDict) -> MetricRecord:
    records = list(content.metric_records.values())
    if len(records) != 1:
        raise InconsistentReply(f"the reply has {len(records)} MetricRecords instead of one")
    return records[0]


def _refused(mod: str, message: Message, why: str) -> Message:
    reason = f"{mod} cannot clip: {why}"
    log.error(reason)
    return Message(Error(ErrorCode.MOD_FAILED_PRECONDITION, reason), reply_to=message)
