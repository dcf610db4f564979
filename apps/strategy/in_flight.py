"""What an asynchronous strategy has under way: messages, replies that wait for the next update, evaluations."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

from fedq.apps.arrayrecord import ArrayRecord
from fedq.apps.configrecord import ConfigRecord
from fedq.apps.grid import JSON
from fedq.apps.recorddict import RecordDict
from fedq.apps.strategy.errors import CheckpointError

_RECORD = "in-flight"
_MODEL = "version-"


@dataclass(frozen=True, slots=True)
class Sent:
    """A training message: the node it went to, and the number of updates that the model in it had had."""

    node: str
    version: int


@dataclass(slots=True)
class Evaluation:
    """The evaluation of the model after a round. `waiting` are the ids of `message_ids` without a reply so far."""

    round: int
    event: dict[str, JSON]
    message_ids: list[str]
    nodes: list[str]
    waiting: list[str]

    @property
    def busy(self) -> list[str]:
        """The nodes that have not answered."""
        left = set(self.waiting)
        return [node for mid, node in zip(self.message_ids, self.nodes, strict=True) if mid in left]


@dataclass
class InFlight:
    """All of it, in an order that is kept.

    Attributes:
        updates: how many updates the model has had; its version.
        training: message id -> a training message without a reply.
        buffered: message id -> a training message whose reply waits for the next update.
        evaluations: those that are not complete.
        resting: nodes whose last reply was of no use; they are asked again after the next update.
        models: the models that `training` and `buffered` go back to, and the current one, by version.
        known: the nodes that may be asked, as of the last look.
        finished: ids of messages that nothing is needed of any more. Not kept: a checkpoint frees them.
    """

    updates: int = 0
    training: dict[str, Sent] = field(default_factory=dict)
    buffered: dict[str, Sent] = field(default_factory=dict)
    evaluations: list[Evaluation] = field(default_factory=list)
    resting: set[str] = field(default_factory=set)
    models: dict[int, ArrayRecord] = field(default_factory=dict)
    finished: list[str] = field(default_factory=list)
    known: list[str] = field(default_factory=list)

    @property
    def waiting(self) -> tuple[str, ...]:
        """Ids of all messages without a reply."""
        return (*self.training, *(mid for evaluation in self.evaluations for mid in evaluation.waiting))

    def busy(self) -> set[str]:
        """The nodes that train."""
        return {sent.node for sent in self.training.values()}

    def evaluating(self) -> set[str]:
        """The nodes that have to evaluate."""
        return {node for evaluation in self.evaluations for node in evaluation.busy}

    def sent(self, message_ids: Iterable[str], nodes: Iterable[str]) -> None:
        """The current model was sent out for training."""
        for message_id, node in zip(message_ids, nodes, strict=True):
            self.training[message_id] = Sent(node, self.updates)

    def evaluated(self, message_id: str) -> Evaluation | None:
        """A reply to a message of an evaluation is there; the evaluation, if it is complete now."""
        for evaluation in self.evaluations:
            if message_id in evaluation.waiting:
                evaluation.waiting.remove(message_id)
                if evaluation.waiting:
                    return None
                self.evaluations.remove(evaluation)
                self.finished += evaluation.message_ids
                return evaluation
        return None

    def updated(self, model: ArrayRecord) -> None:
        """What was buffered has gone into this model."""
        self.finished += self.buffered
        self.buffered.clear()
        self.resting.clear()
        self.updates += 1
        self.models[self.updates] = model
        needed = {self.updates, *(sent.version for sent in self.training.values())}
        self.models = {version: kept for version, kept in self.models.items() if version in needed}

    def save(self) -> RecordDict:
        """For a checkpoint. The current model is not among it, since the checkpoint has it anyway."""
        needed = {sent.version for sent in (*self.training.values(), *self.buffered.values())} - {self.updates}
        state = {
            "updates": self.updates,
            "training": [[mid, sent.node, sent.version] for mid, sent in self.training.items()],
            "buffered": [[mid, sent.node, sent.version] for mid, sent in self.buffered.items()],
            "evaluations": [asdict(evaluation) for evaluation in self.evaluations],
            "resting": sorted(self.resting),
            "known": self.known,
        }
        models = {f"{_MODEL}{version}": self.models[version] for version in sorted(needed)}
        return RecordDict({_RECORD: ConfigRecord({"state": json.dumps(state)}), **models})

    @classmethod
    def load(cls, state: RecordDict) -> InFlight:
        """What `save` gave; the current model is missing.

        Raises:
            CheckpointError: it is not there, or does not read.
        """
        try:
            kept = json.loads(str(state.config_records[_RECORD]["state"]))
            made = cls(
                updates=int(kept["updates"]),
                training={str(mid): Sent(str(node), int(version)) for mid, node, version in kept["training"]},
                buffered={str(mid): Sent(str(node), int(version)) for mid, node, version in kept["buffered"]},
                evaluations=[Evaluation(**told) for told in kept["evaluations"]],
                resting=set(kept["resting"]),
                known=[str(node) for node in kept["known"]],
            )
            models = state.array_records
            made.models = {int(name.removeprefix(_MODEL)): models[name] for name in models if name.startswith(_MODEL)}
        except (KeyError, TypeError, ValueError) as exc:
            raise CheckpointError(
                f"the checkpoint does not say which messages are under way ({exc!r}); start the run anew"
            ) from exc
        if lost := {sent.version for sent in (*made.training.values(), *made.buffered.values())} - {
            *made.models,
            made.updates,
        }:
            raise CheckpointError(f"the checkpoint lacks version {min(lost)} of the model; start the run anew")
        return made
