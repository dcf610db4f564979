"""The base of the strategies that wrap another one and make what it learns differentially private."""

from __future__ import annotations

import logging
import math
import secrets
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fedq.apps.arrayrecord import ArrayRecord
from fedq.apps.clipping import add_gaussian_noise
from fedq.apps.configrecord import ConfigRecord
from fedq.apps.errors import InconsistentReply, StrategyError
from fedq.apps.grid import Grid
from fedq.apps.message import Message, make_message
from fedq.apps.metricrecord import MetricRecord
from fedq.apps.recorddict import RecordDict
from fedq.apps.strategy.dp_accountant import PrivacyAccountant
from fedq.apps.strategy.errors import CheckpointError
from fedq.apps.strategy.fedavg import FedAvg
from fedq.apps.strategy.folding import number
from fedq.apps.strategy.partial import PlainPartial
from fedq.apps.strategy.sampling import Sampler
from fedq.apps.strategy.strategy import Strategy

log = logging.getLogger(__name__)

_INNER = "wrapped."


@dataclass(frozen=True)
class Admitted:
    """A reply that was handed to the wrapped strategy: its id, its weight there and whether its update was clipped."""

    message_id: str
    weight: float
    clipped: bool


class DifferentialPrivacy(Strategy):
    """Wraps a strategy: looks at each reply before the wrapped strategy does, and adds Gaussian noise to the average.

    The mechanism is that of H. B. McMahan et al., "Learning Differentially Private Recurrent Language Models", 2017,
    https://arxiv.org/abs/1710.06963 (client-level privacy): updates of at most `clipping_norm` are averaged, and noise
    of standard deviation ``noise_multiplier * clipping_norm * s`` is added, where s is how much of the average one node
    can be: the largest share of the weights of the replies averaged, but at least ``1 / num_sampled_clients``. With
    equal weights and all replies that is ``1 / num_sampled_clients``, as in Flower. With other weights, or when replies
    are missing or failed, Flower's noise would be too small for what the multiplier promises (a round with a failed
    reply it drops altogether); this one grows.

    The noise is added to the *average*: if the wrapped strategy is FedAvg or makes something of FedAvg's average
    (FedAvgM, FedAdam and so on), it works on the noised one, which costs no privacy. Any other gets the noise on top of
    its result; whether that hides a node is up to how far one reply can move that result, and a warning says so.

    What is private are the arrays. Metrics are passed on as they are. The noise of a round follows from a seed, drawn
    once per run from the system's randomness, the number of the start in its run, and that of the round. The seed is in
    the checkpoint, which is also written before the first round: a run that was interrupted goes on with the same
    noise. Whoever can read the ServerApp's Context can take the noise off. Noise in floating point is no perfect
    Gaussian (I. Mironov, "On Significance of the Least Significant Bits for Differential Privacy", 2012), NumPy's
    generator (PCG64) is none for cryptography, and a clipped update is longer than the norm by what rounding to the
    dtype of the model adds.

    What that guarantees: the node's update replaced by none, its weight kept, moves the average by at most
    ``clipping_norm * s``; the noise is `noise_multiplier` times that. Weights and who answered are not hidden. It is a
    client-level guarantee against whoever sees the models that are released, not against the server. With
    dp-accounting installed (``fedq[dp]``) each round's metrics say under ``"epsilon"`` what was spent so far, if the
    wrapped strategy averages and there is noise: see `PrivacyAccountant`. The account is in the checkpoint. Another run
    on the same data has an account of its own: add them up.

    Replies are handled as they arrive if the wrapped strategy does so.
    """

    saves_before_first_round = True

    def __init__(
        self,
        strategy: Strategy,
        noise_multiplier: float,
        num_sampled_clients: int,
        noise_seed: int | None,
        accountant: PrivacyAccountant | Literal[False] | None,
    ) -> None:
        if not isinstance(strategy, Strategy):
            raise TypeError(f"a strategy is wrapped, not {type(strategy).__name__}")
        if strategy.wraps_all:
            raise TypeError(f"{type(strategy).__name__} goes around {type(self).__name__}, not inside of it")
        if not noise_multiplier >= 0.0:
            raise ValueError(f"noise_multiplier must be at least 0, not {noise_multiplier}")
        if num_sampled_clients < 1:
            raise ValueError(f"num_sampled_clients must be at least 1, not {num_sampled_clients}")
        self.strategy = strategy
        self.noise_multiplier = noise_multiplier
        self.num_sampled_clients = num_sampled_clients
        self.max_failed_rounds = strategy.max_failed_rounds
        self.reply_budget = strategy.reply_budget
        strategy._outer = self
        self._noise_seed = noise_seed
        self._model: ArrayRecord | None = None
        self._admitted: list[Admitted] = []
        self._asked = 0
        self._averages = isinstance(strategy, FedAvg) and type(strategy).aggregate_train is FedAvg.aggregate_train
        if not self._averages:
            log.warning(
                "%s adds its noise to the result of %s, which is no average: see to it that one reply cannot move it "
                "by more than clipping_norm / num_sampled_clients",
                type(self).__name__,
                type(strategy).__name__,
            )
        # Of all that is released in a round, also where a part of it gets a multiplier of its own.
        self._multiplier = noise_multiplier
        self.accountant = self._accountant(accountant)

    @property
    def epsilon(self) -> float | None:
        """What the rounds so far have spent, for `accountant`'s delta; None where nobody keeps account."""
        return None if self.accountant is None else self.accountant.epsilon

    @property
    @abstractmethod
    def norm(self) -> float:
        """The clipping norm of the round in progress."""

    @abstractmethod
    def admit(self, content: RecordDict, sent: ArrayRecord) -> tuple[RecordDict, bool]:
        """What the wrapped strategy is given of a reply, and whether its update was clipped.

        Raises:
            InconsistentReply: the reply is of no use.
        """

    def prepare(self, config: ConfigRecord) -> None:
        """Put into the config of the training messages what the nodes must know."""

    def adapt(self, server_round: int, admitted: list[Admitted]) -> None:
        """Called after a round with the replies that went into the average."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Those of the wrapped strategy."""
        self._model = arrays
        self.prepare(config)
        messages = list(self.strategy.configure_train(server_round, arrays, config, grid))
        self._asked = len(messages)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Hand the replies to the wrapped strategy one by one, and add the noise."""
        if self._model is None:
            raise StrategyError(
                f"{type(self).__name__} compares the replies with the model that was sent: call configure_train first"
            )
        self._admitted = []
        self._keep_beside(admitted=PlainPartial(self._tell_admitted, self._take_admitted))
        examined = self._examined(replies, self._model)

        def noised(average: ArrayRecord) -> ArrayRecord:
            return self._noised(server_round, average)

        if isinstance(self.strategy, FedAvg) and self._averages:
            self.strategy._privatize = noised
            try:
                arrays, metrics = self.strategy.aggregate_train(server_round, examined)
            finally:
                self.strategy._privatize = None
        else:
            arrays, metrics = self.strategy.aggregate_train(server_round, examined)
            arrays = None if arrays is None else noised(arrays)
        if self._admitted:
            self.adapt(server_round, self._admitted)
            metrics = self._with_epsilon(metrics)
        return arrays, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Those of the wrapped strategy."""
        return self.strategy.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """As the wrapped strategy does."""
        return self.strategy.aggregate_evaluate(server_round, replies)

    def stream_options(self, messages: int) -> dict[str, Any]:
        """Those of the wrapped strategy."""
        return self.strategy.stream_options(messages)

    def record_failure(self, reply: Message, reason: str) -> None:
        """As any strategy; the reply does not count for the noise any more."""
        for place in reversed(range(len(self._admitted))):
            if self._admitted[place].message_id == reply.metadata.reply_to_message_id:
                del self._admitted[place]
                break
        super().record_failure(reply, reason)

    def summary(self) -> None:
        """Log how the strategy is set up."""
        log.info("%s: noise multiplier %g, clipping norm %g", type(self).__name__, self.noise_multiplier, self.norm)
        self.strategy.summary()

    def save_state(self) -> RecordDict:
        """That of the wrapped strategy, and the seed of the noise."""
        inner = {f"{_INNER}{name}": record for name, record in self.strategy.save_state().items()}
        kept = RecordDict({**inner, "noise": ConfigRecord({"seed": str(self._seed())})})
        if self.accountant is not None:
            kept["privacy"] = ConfigRecord({"rounds": self.accountant.state})
        return kept

    def load_state(self, state: RecordDict) -> None:
        """Take up what `save_state` gave."""
        noise = state.get("noise")
        seed = noise.get("seed") if isinstance(noise, ConfigRecord) else None
        if not isinstance(seed, str) or not seed.isdecimal():
            raise CheckpointError("the checkpoint holds no seed of the noise; start the run anew")
        self._noise_seed = int(seed)
        if self.accountant is not None:
            privacy = state.get("privacy")
            rounds = privacy.get("rounds") if isinstance(privacy, ConfigRecord) else None
            if not isinstance(rounds, str):
                raise CheckpointError(
                    "the checkpoint holds no account of the rounds before it, so that epsilon cannot be told: "
                    "install fedq[dp] wherever the ServerApp may run, start the run anew, or pass accountant=False"
                )
            self.accountant.state = rounds
        inner = {name.removeprefix(_INNER): kept for name, kept in state.items() if name.startswith(_INNER)}
        self.strategy.load_state(RecordDict(inner))

    def _prepare(self, grid: Grid, timeout: float) -> None:
        super()._prepare(grid, timeout)
        self.strategy._prepare(grid, timeout)

    def generator(self, server_round: int, purpose: int) -> np.random.Generator:
        """The source of a round's noise for one purpose. Asked again, it gives the same numbers again.

        A run may start the same object several times: each of its starts has noise of its own, since the difference of
        two models with the same noise would be without any.
        """
        start = 1 if self._grid is None else self._grid.strategy_starts
        return np.random.default_rng(np.random.SeedSequence(self._seed(), spawn_key=(start, server_round, purpose)))

    def _seed(self) -> int:
        if self._noise_seed is None:
            self._noise_seed = secrets.randbits(128)
        return self._noise_seed

    def _accountant(self, given: PrivacyAccountant | Literal[False] | None) -> PrivacyAccountant | None:
        if given is False:
            return None
        reason = ""
        if not self._averages:
            reason = f"how far one reply moves the result of {type(self.strategy).__name__} is not known"
        elif self._multiplier == 0.0:
            reason = "a noise_multiplier of 0 hides nothing"
        if given is not None:
            if reason:
                raise ValueError(f"there is no epsilon to account for: {reason}")
            if given.secret_sample and isinstance(self.strategy, FedAvg) and self.strategy.seed is None:
                self.strategy._sampler = Sampler(secrets.randbits(256))
            return given
        if reason:
            log.info("%s reports no epsilon: %s", type(self).__name__, reason)
        elif not PrivacyAccountant.available():
            log.info("%s reports no epsilon: pip install 'fedq[dp]' for that", type(self).__name__)
        else:
            return PrivacyAccountant()
        return None

    def _with_epsilon(self, metrics: MetricRecord | None) -> MetricRecord | None:
        """Account for the round that has released something; its metrics with what was spent so far."""
        if self.accountant is None:
            return metrics
        nodes = self.strategy.sampled_from if isinstance(self.strategy, FedAvg) else 0
        weights = {reply.weight for reply in self._admitted}
        if len(weights) == 1 and len(self._admitted) == self._asked < nodes:
            self.accountant.add(self._multiplier, sample=self._asked, nodes=nodes)
        else:
            self.accountant.add(self._multiplier)
        if nodes > 0 and self.accountant.delta * nodes >= 1.0:
            log.warning("delta %g is no smaller than one over the %d nodes", self.accountant.delta, nodes)
        epsilon = self.accountant.epsilon
        log.info(
            "%d rounds have spent epsilon %.4g at delta %g", self.accountant.rounds, epsilon, self.accountant.delta
        )
        return MetricRecord({**(metrics or {}), "epsilon": epsilon})

    def _tell_admitted(self) -> object:
        return [[reply.message_id, reply.weight, reply.clipped] for reply in self._admitted]

    def _take_admitted(self, kept: list[tuple[str, float, bool]]) -> None:
        self._admitted = [Admitted(*told) for told in kept]

    def _examined(self, replies: Iterable[Message], sent: ArrayRecord) -> Iterator[Message]:
        for reply in replies:
            if reply.has_error():
                yield reply
                continue
            try:
                content, clipped = self.admit(reply.content, sent)
            except InconsistentReply as exc:
                self.record_failure(reply, str(exc))
                continue
            metadata = reply.metadata
            self._admitted.append(Admitted(metadata.reply_to_message_id, self._weight(content), clipped))
            yield make_message(metadata, content)

    def _weight(self, content: RecordDict) -> float:
        """The weight that the wrapped strategy gives a reply. It refuses those whose weight is none."""
        if not isinstance(self.strategy, FedAvg):
            return 1.0
        for metrics in content.metric_records.values():
            value = metrics.get(self.strategy.weighted_by_key)
            if value is not None and not isinstance(value, list):
                return number(value)
        return 1.0

    def _noised(self, server_round: int, average: ArrayRecord) -> ArrayRecord:
        weights = [reply.weight for reply in self._admitted]
        share = max(weights) / math.fsum(weights) if weights else 1.0
        deviation = self.noise_multiplier * self.norm * max(share, 1.0 / self.num_sampled_clients)
        log.info("round %d: noise of standard deviation %.4g", server_round, deviation)
        return add_gaussian_noise(average, deviation, self.generator(server_round, 0))


def one_array_record(content: RecordDict) -> tuple[str, ArrayRecord]:
    """The one ArrayRecord of a reply, with its name.

    Raises:
        InconsistentReply: there is none, or there are several.
    """
    records = content.array_records
    if len(records) != 1:
        raise InconsistentReply(f"it has {len(records)} ArrayRecords instead of one")
    ((name, arrays),) = records.items()
    return name, arrays
