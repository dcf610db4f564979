"""What a ServerApp sends: messages are encoded, each content once, and pushed in one step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedq.apps.errors import AppError
from fedq.apps.message import Message
from fedq.apps.wire import encode
from fedq.relay import messages, nodes, objects
from fedq.relay.attempt import Attempt
from fedq.relay.errors import JournalMismatch, NodeUnknown, ObjectMissing
from fedq.relay.held import HeldArrays
from fedq.relay.journal import fenced, over
from fedq.relay.messages import Content, Outgoing, Push
from fedq.relay.runs import RunInfo


@dataclass(frozen=True, slots=True)
class Load:
    """A push that is ready to be sent: which it is, the messages, the contents that they share, and their arrays."""

    checkpoint: int
    number: int
    outgoing: Sequence[Outgoing]
    contents: Sequence[Content]
    blobs: Mapping[str, memoryview]


class Departures:
    """What goes out from one attempt. It notes in ``held`` which arrays the ServerApp has."""

    def __init__(self, attempt: Attempt, info: RunInfo, held: HeldArrays) -> None:
        self._attempt = attempt
        self._relay = attempt.relay
        self._info = info
        self._held = held
        self._run = attempt.run

    def load(self, batch: Sequence[Message], checkpoint: int, number: int, on_offline: str) -> Load:
        """Encode messages, each content once, however many of them share it. Nothing is sent.

        Raises:
            AppError: something in the batch cannot be sent.
            NodeUnknown: a node is not among those that the run was submitted for.
        """
        contents: list[Content] = []
        blobs: dict[str, memoryview] = {}
        by_object: dict[int, int] = {}
        by_body: dict[bytes, int] = {}
        outgoing: list[Outgoing] = []
        for index, message in enumerate(batch):
            if not isinstance(message, Message):
                raise AppError(f"push_messages takes Messages, not {type(message).__name__}", run_id=self._run)
            if not message.has_content():
                raise AppError("an instruction carries content, not an error", run_id=self._run)
            meta = message.metadata
            if not meta.dst_node_id or meta.reply_to_message_id:
                raise AppError("only instructions to nodes can be pushed, no replies", run_id=self._run)
            place = by_object.get(id(message.content))
            if place is None:
                encoded = encode(message.content, inline_limit=objects.INLINE_LIMIT)
                self._held.remember(message.content)
                place = by_body.get(encoded.data)
                if place is None:
                    place = by_body[encoded.data] = len(contents)
                    nbytes = len(encoded.data) + sum(blob.nbytes for blob in encoded.blobs.values())
                    contents.append(Content(encoded.data, tuple(encoded.blobs), nbytes))
                    blobs.update(encoded.blobs)
                by_object[id(message.content)] = place
            message_id = messages.message_id(self._run, checkpoint, number, index, meta.dst_node_id)
            outgoing.append(
                Outgoing(
                    message_id, meta.dst_node_id, place, meta.message_type, meta.group_id, float(meta.ttl), on_offline
                )
            )
        self._check_selected({message.node for message in outgoing})
        return Load(checkpoint, number, outgoing, contents, blobs)

    def _check_selected(self, names: set[str]) -> None:
        selector = self._info.selector
        if not selector or not names:
            return
        selected = set(self._attempt.do(lambda: nodes.roster(self._relay, selector, registered=True)))
        if foreign := sorted(names - selected):
            wanted = ", ".join(f"{key}={value}" for key, value in selector.items())
            raise NodeUnknown(
                f"node {foreign[0]} does not have the labels that the run was submitted for ({wanted}); "
                "send to nodes that get_node_ids() gives",
                run_id=self._run,
                node_id=foreign[0],
            )

    def send(self, load: Load) -> messages.Pushed:
        """Push it. One that was pushed before, by this attempt or an earlier one, is recognised.

        Raises:
            JournalMismatch: an earlier attempt pushed something else there.
            NodeUnknown: no node of such a name is registered; nothing was sent.
            RelayFull: the server has no room for it.
        """
        return self._attempt.do(lambda: self._push(load))

    def _push(self, load: Load) -> messages.Pushed:
        inline = sum(len(load.contents[message.content].body) for message in load.outgoing)
        objects.check_memory(self._relay, inline, run=self._run)
        token = self._attempt.token
        for _ in range(3):
            objects.upload_shared(self._relay, self._run, token, str(load.checkpoint), load.blobs)
            pushed = messages.push(
                self._relay, self._run, token, load.checkpoint, load.number, load.contents, load.outgoing
            )
            match pushed.outcome:
                case Push.OK:
                    return pushed
                case Push.MISSING:
                    continue
                case Push.STOPPED:
                    raise over(self._run, pushed.detail[0] if pushed.detail else "over")
                case Push.MISMATCH:
                    raise JournalMismatch(
                        f"push {load.number} after checkpoint {load.checkpoint} differs from what this ServerApp "
                        "pushed there before it was interrupted; a ServerApp has to do the same again up to that "
                        "point: seed what is random, and save what depends on the time of day in the Context",
                        run_id=self._run,
                    )
                case Push.UNKNOWN_NODE:
                    names = ", ".join(pushed.detail)
                    raise NodeUnknown(
                        f"no node of this name is registered: {names}; nothing was sent (get_node_ids() gives those "
                        "that are)",
                        run_id=self._run,
                        node_id=pushed.detail[0] if pushed.detail else None,
                    )
                case _:
                    raise fenced(self._run)
        raise ObjectMissing("arrays of a push vanish from the server as they are uploaded", run_id=self._run)
