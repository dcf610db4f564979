"""Messages, Contexts, errors and configs as bytes and back."""

from __future__ import annotations

import math

import msgspec

from fedq.apps.context import Context
from fedq.apps.error import Error
from fedq.apps.errors import WireError
from fedq.apps.message import Message, make_message
from fedq.apps.metadata import Metadata
from fedq.apps.user_config import UserConfig, check_user_config
from fedq.apps.wire.buffer import Buffer
from fedq.apps.wire.frame import Kind, open_frame, write_frame
from fedq.apps.wire.header import ConfigPairs, ContextHeader, ErrorHeader, MessageHeader, MetadataHeader
from fedq.apps.wire.records import Reader, Writer

__all__ = [
    "decode_context",
    "decode_error",
    "decode_message",
    "decode_user_config",
    "encode_context",
    "encode_error",
    "encode_message",
    "encode_user_config",
]

_errors = msgspec.msgpack.Decoder(ErrorHeader)
_configs = msgspec.msgpack.Decoder(ConfigPairs)
_messages = msgspec.msgpack.Decoder(MessageHeader)
_contexts = msgspec.msgpack.Decoder(ContextHeader)


def encode_error(error: Error) -> bytes:
    """An Error as bytes."""
    return write_frame(Kind.ERROR, _error_header(error), ())


def decode_error(data: Buffer) -> Error:
    """An Error from bytes. Raises WireError."""
    header, blocks = open_frame(data, Kind.ERROR, _errors)
    blocks.close()
    return _error(header)


def encode_user_config(config: UserConfig) -> bytes:
    """A config as bytes. Raises ConfigError for values that configs cannot hold."""
    return write_frame(Kind.CONFIG, _pairs(config, "config"), ())


def decode_user_config(data: Buffer) -> UserConfig:
    """A config from bytes. Raises WireError."""
    pairs, blocks = open_frame(data, Kind.CONFIG, _configs)
    blocks.close()
    return _config(pairs)


def encode_message(message: Message) -> bytes:
    """A whole message as bytes, all of its arrays inline. Raises what `encode` raises."""
    meta = message.metadata
    metadata = MetadataHeader(
        meta.run_id,
        meta.message_id,
        meta.src_node_id,
        meta.dst_node_id,
        meta.reply_to_message_id,
        meta.group_id,
        float(meta.created_at),
        float(meta.ttl),
        meta.message_type,
    )
    if message.has_error():
        return write_frame(Kind.MESSAGE, MessageHeader(metadata, _error_header(message.error), None), ())
    writer = Writer()
    return write_frame(Kind.MESSAGE, MessageHeader(metadata, None, writer.entries(message.content)), writer.blocks)


def decode_message(data: Buffer) -> Message:
    """A whole message from bytes. Raises WireError."""
    header, blocks = open_frame(data, Kind.MESSAGE, _messages)
    meta = header.metadata
    if not (math.isfinite(meta.created_at) and math.isfinite(meta.ttl)):
        raise WireError("the data is damaged: the times of the message are no numbers")
    try:
        metadata = Metadata(
            meta.run_id,
            meta.message_id,
            meta.src_node_id,
            meta.dst_node_id,
            meta.reply_to_message_id,
            meta.group_id,
            meta.created_at,
            meta.ttl,
            meta.message_type,
        )
    except ValueError as error:
        raise WireError(f"the data is damaged: {error}") from error
    if (header.error is None) == (header.records is None):
        raise WireError("the data is damaged: a message carries either content or an error")
    content = None if header.records is None else Reader().records(header.records, blocks)
    blocks.close()
    return make_message(metadata, content, None if header.error is None else _error(header.error))


def encode_context(context: Context) -> bytes:
    """A whole Context as bytes, all of its arrays inline. Raises what `encode` raises, and ConfigError."""
    writer = Writer()
    header = ContextHeader(
        context.run_id,
        context.node_id,
        _pairs(context.node_config, "node config"),
        _pairs(context.run_config, "run config"),
        writer.entries(context.state),
    )
    return write_frame(Kind.CONTEXT, header, writer.blocks)


def decode_context(data: Buffer) -> Context:
    """A whole Context from bytes; what saves it is not part of it. Raises WireError."""
    header, blocks = open_frame(data, Kind.CONTEXT, _contexts)
    state = Reader().records(header.records, blocks)
    blocks.close()
    return Context(
        run_id=header.run_id,
        node_id=header.node_id,
        node_config=_config(header.node_config),
        state=state,
        run_config=_config(header.run_config),
    )


def _error_header(error: Error) -> ErrorHeader:
    return ErrorHeader(error.code, error.reason, error.traceback)


def _error(header: ErrorHeader) -> Error:
    return Error(header.code, header.reason, header.traceback)


def _pairs(config: UserConfig, what: str) -> ConfigPairs:
    return list(check_user_config(config, what).items())


def _config(pairs: ConfigPairs) -> UserConfig:
    config = dict(pairs)
    if len(config) != len(pairs):
        raise WireError("the data is damaged: a config has a name twice")
    return config
