"""The node's side of secure aggregation."""

from __future__ import annotations

import logging

import msgspec

import fedq.apps.wire as wire
from fedq.apps.array import Array
from fedq.apps.arrayrecord import ArrayRecord
from fedq.apps.compression import restored
from fedq.apps.configrecord import ConfigRecord
from fedq.apps.context import Context
from fedq.apps.error import Error, ErrorCode
from fedq.apps.errors import InconsistentReply
from fedq.apps.message import Message, make_message
from fedq.apps.message_type import MessageType
from fedq.apps.mod.compose import ClientAppCallable
from fedq.apps.recorddict import RecordDict
from fedq.apps.secagg import identity, keys, ledger, stages, vector

log = logging.getLogger(__name__)

KEY_FILE = "secagg-key-file"
"""Key of the node config: a file of at least 32 random bytes that seals what the node keeps between the stages."""


_INLINE = 4096


class _Kept(msgspec.Struct):
    """What a node knows of a round between its stages."""

    session: str
    stage: str
    transport: bytes
    mask: bytes
    seed: bytes = b""
    threshold: int = 0
    neighbours: dict[str, stages.PublicKeys] = {}
    shares: dict[str, stages.Share] = {}


def secaggplus_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Answer the stages of `fedq.apps.strategy.SecAggPlus`; what the app trained leaves the node only masked.

    It must be outside of all mods that look at arrays (clipping, noise): those cannot see through masks, and say so. A
    data owner who imposes such mods imposes this one in front of them, and it then is not among those of the app.

    The function sees the message of the wrapped strategy once per round and replies as for FedAvg: one ArrayRecord with
    the names and shapes that were sent, one MetricRecord with an integer weight. Nothing else of its reply is passed
    on. A training message that does not belong to a stage is refused: the server cannot have the update in the clear by
    asking differently. Other messages pass as they are.

    Between the stages the secrets of a round lie in the node's Context, and with a ``secagg-key-file`` in the node
    config they are sealed under it. Without one, whoever can read the Context where it is stored (in a deployment the
    operator of the relay's Redis) can take the mask off. Each round has new secrets; they are gone when the node has
    revealed its shares, and no stage of a round is answered twice. The app does not see them.

    Who gets the keys of whom is told by the server. A node whose config names a ``secagg-identity-file`` signs its
    keys; one with a ``secagg-peers-file`` takes part only if those of all its neighbours are signed by nodes on that
    list, so that a server which puts keys of its own in their place learns nothing (`fedq.apps.secagg.identity`). One
    with a ``secagg-ledger-file`` is not fooled by an older Context that is put back (`fedq.apps.secagg.ledger`).

    A refusal is an error reply, ``MOD_FAILED_PRECONDITION``, which tells why.
    """
    if message.metadata.message_type.partition(".")[0] != MessageType.TRAIN:
        return _inside(message, context, call_next)
    try:
        config = message.content.config_records.get(stages.RECORD)
        if config is None:
            raise InconsistentReply(
                "the ServerApp must wrap its strategy in SecAggPlus, and only one secaggplus_mod be around the app; "
                "an update is not sent unmasked"
            )
        stage, session = str(config.get("stage")), str(config.get("session"))
        data = config.get("payload")
        if stage == stages.SETUP:
            return _answer(message, config, _setup(session, context))
        kept = _load(context, session)
        _once(kept, stage, message, context)
        if stage == stages.SHARE:
            return _answer(message, config, _share(kept, stages.decoded(data, stages.ShareRequest), context))
        if stage == stages.COLLECT:
            return _collect(kept, stages.decoded(data, stages.CollectRequest), message, context, call_next)
        if stage == stages.UNMASK:
            return _answer(message, config, _unmask(kept, stages.decoded(data, stages.UnmaskRequest), context))
        raise InconsistentReply(f"there is no stage {stage!r}")
    except InconsistentReply as exc:
        reason = f"secaggplus_mod refuses: {exc}"
        log.error(reason)
        return Message(Error(ErrorCode.MOD_FAILED_PRECONDITION, reason), reply_to=message)


def _once(kept: _Kept, stage: str, message: Message, context: Context) -> None:
    """Answer one question only in each stage, if the node keeps a ledger."""
    if ledger.LEDGER_FILE not in context.node_config:
        return
    # What the answer depends on: secrets and message and, where the app trains, the state that it finds.
    question = keys.commitment(kept.seed) + _told(message.content)
    if stage == stages.COLLECT:
        question += _told(RecordDict({n: record for n, record in context.state.items() if n != stages.RECORD}))
    ledger.once(context.node_config, keys.public_key(kept.mask), stage, question)


def _told(content: RecordDict) -> bytes:
    """Bytes that differ where records do; of large arrays their digests are in it."""
    return bytes(wire.encode(content, inline_limit=_INLINE).data)


def _setup(session: str, context: Context) -> stages.PublicKeys:
    kept = _Kept(session, stages.SETUP, keys.fresh_secret(), keys.fresh_secret())
    _keep(context, kept)
    public = stages.PublicKeys(keys.public_key(kept.transport), keys.public_key(kept.mask))
    return identity.signed(public, context.node_config, identity_place(context.run_id, session, context.node_id))


def _share(kept: _Kept, asked: stages.ShareRequest, context: Context) -> stages.Shares:
    _expect(kept, stages.SETUP)
    neighbours = sorted(asked.neighbours)
    if context.node_id in neighbours:
        raise InconsistentReply("a node is not its own neighbour")
    told = [keys.public_key(kept.transport), *(asked.neighbours[other].transport for other in neighbours)]
    if len(set(told)) < len(told):
        raise InconsistentReply("the server tells the same key of two nodes")
    places = {other: identity_place(context.run_id, kept.session, other) for other in neighbours}
    identity.verify(asked.neighbours, context.node_config, places)
    # With at most half of the shares two sets of neighbours could be asked for what must not be known together.
    if not len(neighbours) / 2 < asked.threshold <= len(neighbours) or asked.threshold < 2:
        raise InconsistentReply(
            f"{asked.threshold} of {len(neighbours)} shares would give a secret; more than half must be needed, and 2"
        )
    kept.seed = keys.fresh_secret()
    kept.threshold, kept.neighbours, kept.stage = asked.threshold, asked.neighbours, stages.SHARE
    of_seed = keys.split(kept.seed, asked.threshold, len(neighbours))
    of_key = keys.split(kept.mask, asked.threshold, len(neighbours))
    sealed = {}
    for other, (index, seed), (_, key) in zip(neighbours, of_seed, of_key, strict=True):
        plain = msgspec.msgpack.encode(stages.Share(index, seed, key))
        place = _place(context, kept.session, context.node_id, other)
        sealed[other] = keys.seal(keys.agreed(kept.transport, asked.neighbours[other].transport, place), plain, place)
    _keep(context, kept)
    return stages.Shares(sealed, keys.commitment(kept.seed))


def _collect(
    kept: _Kept, asked: stages.CollectRequest, message: Message, context: Context, call_next: ClientAppCallable
) -> Message:
    _expect(kept, stages.SHARE)
    me = context.node_id
    if foreign := asked.sealed.keys() - kept.neighbours.keys():
        raise InconsistentReply(f"it has shares of {', '.join(sorted(foreign))}, no neighbours of this node")
    if len(asked.sealed) < kept.threshold:
        raise InconsistentReply(f"only {len(asked.sealed)} neighbours are left, {kept.threshold} are needed to hide")
    for other, sealed in asked.sealed.items():
        place = _place(context, kept.session, other, me)
        key = keys.agreed(kept.transport, kept.neighbours[other].transport, place)
        kept.shares[other] = stages.decoded(keys.unseal(key, sealed, place), stages.Share)

    content = RecordDict({name: kind for name, kind in message.content.items() if name != stages.RECORD})
    sent = _one_record(content, "the message")
    sent = ArrayRecord(dict(sent))  # the app may change the record that it is given
    reply = _inside(make_message(message.metadata, content), context, call_next)
    if reply.has_error():
        return reply
    quantization = vector.Quantization(asked.clipping_range, asked.quantization_bits, asked.modulus_bits)
    weight = _weight(reply.content, asked)
    whole = restored(reply, RecordDict({"arrays": sent}))  # a mod inside may pass on the largest elements only
    masked = quantization.quantized(sent, _one_record(whole.content, "the reply"), weight)
    vector.add_mask(masked, keys.derived(kept.seed, _own(context, kept.session)), 1)
    for other in kept.shares:
        key = keys.agreed(kept.mask, kept.neighbours[other].mask, pair_purpose(context.run_id, kept.session, me, other))
        vector.add_mask(masked, key, vector.pair_sign(me, other))
    kept.stage = stages.COLLECT
    _keep(context, kept)
    hidden = ArrayRecord({stages.MASKED: Array.from_numpy_ndarray(masked, copy=False)})
    told = stages.record(stages.COLLECT, kept.session)
    return Message(RecordDict({stages.MASKED: hidden, stages.RECORD: told}), reply_to=message)


def _unmask(kept: _Kept, asked: stages.UnmaskRequest, context: Context) -> stages.RevealedShares:
    _expect(kept, stages.COLLECT)
    survivors, dropped = set(asked.survivors), set(asked.dropped)
    if both := survivors & dropped:
        raise InconsistentReply(f"both secrets of {', '.join(sorted(both))} are asked for, which would unmask it")
    if foreign := (survivors | dropped) - kept.shares.keys():
        raise InconsistentReply(f"this node has no shares of {', '.join(sorted(foreign))}")
    if len(survivors) < kept.threshold:
        raise InconsistentReply(
            f"only {len(survivors)} neighbours would be summed, {kept.threshold} are needed to hide"
        )
    del context.state[stages.RECORD]
    return stages.RevealedShares(
        seeds={other: (kept.shares[other].index, kept.shares[other].seed) for other in sorted(survivors)},
        keys={other: (kept.shares[other].index, kept.shares[other].key) for other in sorted(dropped)},
    )


def _inside(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Call the app, which finds no secret of this mod in its Context and cannot change one."""
    secrets = context.state.pop(stages.RECORD, None)
    try:
        return call_next(message, context)
    finally:
        if secrets is not None:
            context.state[stages.RECORD] = secrets
        else:
            context.state.pop(stages.RECORD, None)


def pair_purpose(run_id: int, session: str, node: str, other: str) -> str:
    """What the key of a pair of nodes is derived for; the same at both."""
    first, second = sorted((node, other))
    return f"pair mask, run {run_id}, {session}, {first}, {second}"


def own_purpose(run_id: int, session: str, node: str) -> str:
    """What a node's own mask is derived for."""
    return f"own mask, run {run_id}, {session}, {node}"


def identity_place(run_id: int, session: str, node: str) -> str:
    """What the signature of a node's public keys is bound to."""
    return f"run {run_id}, {session}, {node}"


def _own(context: Context, session: str) -> str:
    return own_purpose(context.run_id, session, context.node_id)


def _place(context: Context, session: str, sender: str, receiver: str) -> str:
    return f"share, run {context.run_id}, {session}, {sender} to {receiver}"


def _expect(kept: _Kept, stage: str) -> None:
    if kept.stage != stage:
        raise InconsistentReply(f"the last stage of this round was {kept.stage!r}; a stage is answered once, in turn")


def _weight(content: RecordDict, asked: stages.CollectRequest) -> int:
    records = list(content.metric_records.values())
    value = records[0].get(asked.weighted_by_key) if len(records) == 1 else None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or not 1 <= value <= asked.max_weight:
        raise InconsistentReply(
            f"the reply needs one MetricRecord with a whole {asked.weighted_by_key!r} from 1 to {asked.max_weight} "
            f"(max_weight of SecAggPlus), not {value!r}"
        )
    return value


def _one_record(content: RecordDict, where: str) -> ArrayRecord:
    records = list(content.array_records.values())
    if len(records) != 1:
        raise InconsistentReply(f"{where} has {len(records)} ArrayRecords instead of one")
    return records[0]


def _answer(message: Message, config: ConfigRecord, payload: msgspec.Struct) -> Message:
    told = stages.record(str(config["stage"]), str(config["session"]), payload)
    return Message(RecordDict({stages.RECORD: told}), reply_to=message)


def _keep(context: Context, kept: _Kept) -> None:
    data = msgspec.msgpack.encode(kept)
    if (key := _key(context)) is not None:
        data = keys.seal(key, data, _state(context))
    context.state[stages.RECORD] = ConfigRecord({"kept": data, "sealed": key is not None})


def _load(context: Context, session: str) -> _Kept:
    record = context.state.config_records.get(stages.RECORD)
    data = None if record is None else record.get("kept")
    if not isinstance(data, bytes):
        raise InconsistentReply(f"this node keeps no secrets of {session!r}: that round is over for it")
    if (key := _key(context)) is not None:
        data = keys.unseal(key, data, _state(context))
    kept = stages.decoded(data, _Kept)
    if kept.session != session:
        raise InconsistentReply(f"this node is in {kept.session!r}, not in {session!r}")
    return kept


def _state(context: Context) -> str:
    return f"state, run {context.run_id}, {context.node_id}"


def _key(context: Context) -> bytes | None:
    secret = identity.secret_in(context.node_config, KEY_FILE)
    return None if secret is None else keys.derived(secret, "node state")
