"""SecAggPlus: a strategy's average without the server seeing any node's update."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from fedq.apps.arrayrecord import ArrayRecord
from fedq.apps.configrecord import ConfigRecord
from fedq.apps.errors import InconsistentReply, StrategyError
from fedq.apps.grid import Grid
from fedq.apps.message import Message, make_message
from fedq.apps.metadata import Metadata
from fedq.apps.metricrecord import MetricRecord
from fedq.apps.mod.secaggplus import own_purpose, pair_purpose
from fedq.apps.recorddict import RecordDict
from fedq.apps.replies import Replies
from fedq.apps.secagg import keys, stages, vector
from fedq.apps.strategy.fedavg import FedAvg
from fedq.apps.strategy.strategy import Strategy

log = logging.getLogger(__name__)

T = TypeVar("T", bound=msgspec.Struct)

NODES = "secagg-nodes"
"""The training metric that says how many nodes are in the sum of a round."""


class SecAggPlus(Strategy):
    """Wraps FedAvg, or a strategy that makes something of FedAvg's average, and lets the server see sums only.

    The protocol is that of J. H. Bell et al., "Secure Single-Server Aggregation with (Poly)Logarithmic Overhead", 2020,
    https://eprint.iacr.org/2020/704, algorithm 2, against a server that follows it and looks at all it gets; on the
    graph of all nodes it is that of K. Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine
    Learning", 2017, https://eprint.iacr.org/2017/281. The ClientApp needs `fedq.apps.mod.secaggplus_mod` as its
    outermost mod. A training round has four stages, each one message per node:

    1. *setup*: each node draws keys and tells the public ones;
    2. *share*: it learns its neighbours' and splits its secrets among them, sealed for each;
    3. *collect*: it trains, and replies with its update, quantised, weighted and masked;
    4. *unmask*: from the nodes that are left the server gets the shares that take the masks off the sum: for a node in
       it those of its own seed, for one that dropped out those of its mask key, and never both.

    Nodes may drop out at any stage, `tolerated_dropouts` at least in all. The sum of those whose masked update arrived
    is exact in the integers that updates become (see `fedq.apps.secagg.vector.Quantization`). With more, the round has
    failed as one without a usable reply: the model stays, an event ``secagg-failed`` tells why, and `max_failed_rounds`
    of the wrapped strategy counts it.

    Training metrics do not reach the server but the sum of the weights; ``"secagg-nodes"`` says how many nodes the sum
    has. Evaluation is that of the wrapped strategy, with its metrics in the clear. A node that sends nonsense is not
    covered. Who gets the keys of whom is told by the server; one that lies about them is found out by nodes that sign
    their keys and know their peers (`fedq.apps.secagg.identity`), and only by those.

    Memory is one vector of integers, however many nodes there are. Resumes as the wrapped strategy: secrets lie at the
    nodes, answers of finished stages are not asked for again.

    Args:
        strategy: what is wrapped; a TypeError if it looks at single replies.
        num_neighbours: with how many others a node shares: an even number, or None for all. Bell et al. show how few
            are enough for many nodes. With fewer nodes in a round than that: all.
        threshold: how many of the neighbours' shares give a secret: a share of them above 0.5 and below 1. More hides
            against more nodes that collude with the server, fewer tolerates more drop-outs.
        clipping_range: each value of an update (what was trained less what was sent) is clipped to this magnitude.
        quantization_bits: values become integers of so many bits, 2 to 40.
        modulus_bits: 32 or 64: the bits of each masked value on the wire. ``nodes * max_weight * 2**quantization_bits``
            must lie below ``2**modulus_bits``, which each round checks.
        max_weight: the largest weight (number of examples) a node may have; one with more refuses.

    Raises:
        MissingExtra: cryptography or pycryptodome is missing: ``pip install 'fedq[secagg]'``.
    """

    def __init__(
        self,
        strategy: Strategy,
        *,
        num_neighbours: int | None = None,
        threshold: float = 0.67,
        clipping_range: float = 8.0,
        quantization_bits: int = 32,
        modulus_bits: int = 64,
        max_weight: int = 1_000_000,
    ) -> None:
        if not isinstance(strategy, FedAvg) or type(strategy).aggregate_train is not FedAvg.aggregate_train:
            raise TypeError(
                "SecAggPlus hands out an average and no single reply: it wraps FedAvg, or what overrides its `update`, "
                f"not {type(strategy).__name__}"
            )
        if strategy.reply_budget is not None:
            raise ValueError(
                "SecAggPlus keeps no partial sum in a checkpoint, and its nodes answer all at once: wrap a strategy "
                "without reply_budget"
            )
        if num_neighbours is not None and (num_neighbours < 2 or num_neighbours % 2):
            raise ValueError(f"num_neighbours must be even and at least 2, not {num_neighbours}")
        if not 0.5 < threshold < 1.0:
            raise ValueError(f"threshold must lie between 0.5 and 1, not {threshold}")
        if not (clipping_range > 0.0 and np.isfinite(clipping_range)):
            raise ValueError(f"clipping_range must be above 0, not {clipping_range}")
        if not 2 <= quantization_bits <= 40:
            raise ValueError(f"quantization_bits must lie between 2 and 40, not {quantization_bits}")
        if modulus_bits not in (32, 64):
            raise ValueError(f"modulus_bits must be 32 or 64, not {modulus_bits}")
        if max_weight < 1:
            raise ValueError(f"max_weight must be at least 1, not {max_weight}")
        keys.public_key(bytes(keys.SECRET_BYTES))  # MissingExtra here, not in the first round
        keys.split(bytes(keys.SECRET_BYTES), 2, 2)
        self.strategy = strategy
        self.num_neighbours = num_neighbours
        self.threshold = threshold
        self.quantization = vector.Quantization(float(clipping_range), quantization_bits, modulus_bits)
        self.max_weight = max_weight
        self.max_failed_rounds = strategy.max_failed_rounds
        strategy._outer = self
        self._timeout: float | None = None
        self._session = ""
        self._sent: ArrayRecord | None = None
        self._messages: dict[str, Message] = {}
        self._further: list[str] = []
        self._failed = ""

    def shares_needed(self, neighbours: int) -> int:
        """How many shares give a secret of a node with so many neighbours."""
        return max(2, neighbours // 2 + 1, min(neighbours, round(self.threshold * neighbours)))

    def tolerated_dropouts(self, nodes: int) -> int:
        """How many of the nodes asked in a round may drop out, whichever they are, without its failing."""
        neighbours = self._degree(nodes)
        return max(0, neighbours - self.shares_needed(neighbours))

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The messages of the setup stage, to the nodes that the wrapped strategy chose.

        Raises:
            StrategyError: the numbers do not fit into the modulus, there are too few nodes, or an array is complex.
        """
        self._further, self._failed = [], ""
        self._sent = arrays
        self._session = f"strategy {grid.strategy_starts}, round {server_round}"
        chosen = list(self.strategy.configure_train(server_round, arrays, config, grid))
        self._messages = {message.metadata.dst_node_id: message for message in chosen}
        if not chosen:
            return []
        if len(chosen) < 3:
            raise StrategyError(
                f"SecAggPlus needs three nodes in a round, not {len(chosen)}: with two each could compute the other's "
                "update; raise min_train_nodes or fraction_train",
                run_id=grid.run_id,
            )
        if len(chosen) * self.max_weight * self.quantization.steps >= 1 << self.quantization.modulus_bits:
            raise StrategyError(
                f"{len(chosen)} nodes with weights up to {self.max_weight} and {self.quantization.quantization_bits} "
                f"bits do not fit into {self.quantization.modulus_bits}: lower max_weight or quantization_bits",
                run_id=grid.run_id,
            )
        if wrong := [name for name, array in arrays.items() if array.numpy(copy=False).dtype.kind == "c"]:
            raise StrategyError(f"complex arrays are not aggregated securely: {', '.join(wrong)}", run_id=grid.run_id)
        return [self._message(node, stages.SETUP, None) for node in self._messages]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Go through the stages and hand their average to the wrapped strategy."""
        if not self._messages:
            return self.strategy.aggregate_train(server_round, replies)
        assert self._sent is not None
        try:
            total, nodes = self._secure_sum(replies)
            average, weight = self.quantization.average(self._sent, total)
        except InconsistentReply as exc:
            self._failed = str(exc)
            log.error("round %d: the secure sum has failed: %s", server_round, exc)
            if self._grid is not None:
                self._grid.emit("secagg-failed", {"round": server_round, "reason": self._failed})
            return None, None
        metrics = MetricRecord({self._weighted_by: weight, NODES: nodes})
        content = RecordDict({"arrays": average, "metrics": metrics})
        return self.strategy.aggregate_train(server_round, [make_message(self._metadata(), content)])

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Those of the wrapped strategy."""
        return self.strategy.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """As the wrapped strategy does."""
        return self.strategy.aggregate_evaluate(server_round, replies)

    def stream_options(self, messages: int) -> dict[str, Any]:
        """Those of the wrapped strategy, for each stage."""
        return self.strategy.stream_options(messages)

    def further_messages(self) -> Iterable[str]:
        """Those of the stages behind the first."""
        return tuple(self._further)

    def save_state(self) -> RecordDict:
        """That of the wrapped strategy: a checkpoint holds no secret and no vector."""
        return self.strategy.save_state()

    def load_state(self, state: RecordDict) -> None:
        """Take up what `save_state` gave."""
        self.strategy.load_state(state)

    def summary(self) -> None:
        """Log how the strategy is set up."""
        log.info(
            "SecAggPlus: neighbours %s, threshold %g, clipping range %g, %d bits modulo 2**%d, weights up to %d",
            "all" if self.num_neighbours is None else self.num_neighbours,
            self.threshold,
            self.quantization.clipping_range,
            self.quantization.quantization_bits,
            self.quantization.modulus_bits,
            self.max_weight,
        )
        self.strategy.summary()

    def _prepare(self, grid: Grid, timeout: float) -> None:
        super()._prepare(grid, timeout)
        self._timeout = timeout

    def _why(self, replies: Replies) -> str:
        return self._failed or super()._why(replies)

    @property
    def _weighted_by(self) -> str:
        assert isinstance(self.strategy, FedAvg)
        return self.strategy.weighted_by_key

    # ------------------------------------------------------------------ the stages

    def _secure_sum(self, replies: Iterable[Message]) -> tuple[NDArray[Any], int]:
        """The sum of the vectors of all nodes whose masked one arrived, and how many they are."""
        public = dict(self._payloads(replies, stages.SETUP, stages.PublicKeys))
        graph = self._graph(public)
        needed = {node: self.shares_needed(len(around)) for node, around in graph.items()}
        if len(public) < 3:
            raise InconsistentReply(
                f"{len(public)} nodes told their keys, three are needed at least{self._last_words()}"
            )

        requests: dict[str, msgspec.Struct] = {
            node: stages.ShareRequest(needed[node], {other: public[other] for other in around})
            for node, around in graph.items()
        }
        shared = dict(self._payloads(self._ask(stages.SHARE, requests), stages.SHARE, stages.Shares))
        if not shared:
            raise InconsistentReply(f"no node has shared its secrets with its neighbours{self._last_words()}")
        sharing = {node: [other for other in around if other in shared] for node, around in graph.items()}
        self._enough(sharing, needed, shared, "after the stage 'share'")

        requests = {
            node: stages.CollectRequest(
                {other: shared[other].sealed.get(node, b"") for other in sharing[node]},
                self.quantization.clipping_range,
                self.quantization.quantization_bits,
                self.quantization.modulus_bits,
                self.max_weight,
                self._weighted_by,
            )
            for node in shared
        }
        assert self._sent is not None
        total: NDArray[Any] = np.zeros(vector.length(self._sent), dtype=self.quantization.dtype)
        summed: set[str] = set()

        def add(reply: Message) -> None:
            total.__iadd__(self._masked(reply))
            summed.add(reply.metadata.src_node_id)

        self._good(self._ask(stages.COLLECT, requests), add)
        around_sum = {node: [other for other in sharing[node] if other in summed] for node in shared}
        self._enough(around_sum, needed, shared, "after the stage 'collect'")

        requests = {
            node: stages.UnmaskRequest(around_sum[node], [other for other in sharing[node] if other not in summed])
            for node in sorted(summed)
        }
        revealed = dict(self._payloads(self._ask(stages.UNMASK, requests), stages.UNMASK, stages.RevealedShares))
        self._enough(
            {node: [other for other in sharing[node] if other in revealed] for node in shared},
            needed,
            shared,
            "in the stage 'unmask'",
        )
        run_id = self._run_id
        for node in sorted(summed):
            shares = [kept.seeds[node] for _, kept in sorted(revealed.items()) if node in kept.seeds]
            seed = self._combined(node, shares, needed[node])
            if keys.commitment(seed) != shared[node].commitment:
                raise InconsistentReply(f"the shares of the seed of {node} do not give its seed: one of them is wrong")
            vector.add_mask(total, keys.derived(seed, own_purpose(run_id, self._session, node)), -1)
        for node in sorted(shared.keys() - summed):
            if not around_sum[node]:
                continue
            shares = [kept.keys[node] for _, kept in sorted(revealed.items()) if node in kept.keys]
            secret = self._combined(node, shares, needed[node])
            if keys.public_key(secret) != public[node].mask:
                raise InconsistentReply(
                    f"the shares of the mask key of {node} do not give its key: one of them is wrong"
                )
            for other in around_sum[node]:
                pair = keys.agreed(secret, public[other].mask, pair_purpose(run_id, self._session, node, other))
                # What the other node has put in, the dropped one would have taken out.
                vector.add_mask(total, pair, -vector.pair_sign(other, node))
        return total, len(summed)

    def _last_words(self) -> str:
        """What the last node that failed said, for a sentence that tells why the round has failed."""
        failures = self.failures
        return f"; {failures[-1].node_id} says: {failures[-1].reason}" if failures else ""

    def _combined(self, node: str, shares: list[tuple[int, bytes]], needed: int) -> bytes:
        if len(shares) < needed:
            raise InconsistentReply(f"{len(shares)} shares of {node} were revealed, {needed} are needed")
        return keys.combine(shares[:needed])

    def _enough(self, left: dict[str, list[str]], needed: dict[str, int], shared: Iterable[str], when: str) -> None:
        for node in sorted(shared):
            if len(left[node]) < needed[node]:
                tolerated = self.tolerated_dropouts(len(self._messages))
                raise InconsistentReply(
                    f"too many nodes have dropped out {when}: {len(left[node])} neighbours of {node} are left and "
                    f"{needed[node]} are needed to take the masks off; of {len(self._messages)} nodes "
                    f"{tolerated} may drop out"
                )

    def _masked(self, reply: Message) -> NDArray[Any]:
        content, dtype = reply.content, self.quantization.dtype
        record = content.array_records.get(stages.MASKED)
        if record is None or list(record) != [stages.MASKED]:
            raise InconsistentReply("it has no masked vector")
        masked = record[stages.MASKED].numpy(copy=False)
        assert self._sent is not None
        if masked.shape != (vector.length(self._sent),) or masked.dtype != dtype:
            raise InconsistentReply(f"its masked vector is {masked.dtype}{list(masked.shape)}, which does not fit")
        return masked

    def _degree(self, nodes: int) -> int:
        wanted = nodes - 1 if self.num_neighbours is None else self.num_neighbours
        return min(wanted, nodes - 1)

    def _graph(self, public: dict[str, stages.PublicKeys]) -> dict[str, list[str]]:
        """The neighbours of each node: the nodes in a circle, each tied to the nearest on both sides.

        The order on the circle follows from the keys, so that a run that goes on comes to the same one, and nobody
        knows it before they are drawn.
        """
        seed = hashlib.sha256(self._session.encode() + b"".join(public[node].mask for node in sorted(public))).digest()
        circle = sorted(public, key=lambda node: hashlib.sha256(seed + node.encode()).digest())
        count, degree = len(circle), self._degree(len(circle))
        if degree == count - 1:
            return {node: sorted(set(circle) - {node}) for node in sorted(circle)}
        return {
            node: sorted(circle[(at + step) % count] for step in range(-(degree // 2), degree // 2 + 1) if step)
            for at, node in enumerate(circle)
        }

    # ------------------------------------------------------------------ messages

    def _message(self, node: str, stage: str, payload: msgspec.Struct | None) -> Message:
        asked = self._messages[node]
        # The model travels with the one stage that trains.
        records = dict(asked.content.items()) if stage == stages.COLLECT else {}
        content = RecordDict({**records, stages.RECORD: stages.record(stage, self._session, payload)})
        metadata = asked.metadata
        return Message(content, node, metadata.message_type, ttl=metadata.ttl, group_id=metadata.group_id)

    def _ask(self, stage: str, payloads: dict[str, msgspec.Struct]) -> Iterator[Message]:
        if self._grid is None:
            raise StrategyError("SecAggPlus sends messages of its own: run it by start(grid, ...)")
        messages = [self._message(node, stage, payload) for node, payload in sorted(payloads.items())]
        replies = self._send(messages, self._grid, self._timeout or 3600.0)
        self._further.extend(replies.message_ids)
        yield from replies
        self._end(replies, self._grid)

    def _payloads(self, replies: Iterable[Message], stage: str, kind: type[T]) -> list[tuple[str, T]]:
        found: list[tuple[str, T]] = []

        def take(reply: Message) -> None:
            payload = stages.payload(reply.content, stage, self._session, kind)
            found.append((reply.metadata.src_node_id, payload))

        self._good(replies, take)
        return sorted(found, key=lambda item: item[0])

    def _good(self, replies: Iterable[Message], take: Callable[[Message], None]) -> None:
        for reply in replies:
            if reply.has_error():
                reason = reply.error.reason or "no reason was given"
                self.record_failure(reply, f"error {int(reply.error.code)}: {reason}")
                continue
            try:
                take(reply)
            except InconsistentReply as exc:
                self.record_failure(reply, str(exc))

    @property
    def _run_id(self) -> int:
        return 0 if self._grid is None else self._grid.run_id

    def _metadata(self) -> Metadata:
        """Of the one reply that the wrapped strategy is given."""
        asked = next(iter(self._messages.values())).metadata
        return replace(asked, run_id=self._run_id, src_node_id="secagg", dst_node_id="", reply_to_message_id="secagg")
