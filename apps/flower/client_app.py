"""A Flower ClientApp as one of ours."""

from __future__ import annotations

from typing import Any

from fedq.apps.client_app import ClientApp
from fedq.apps.context import Context
from fedq.apps.flower.installed import SERVER, flwr, identify, logs_go_to_the_run, names
from fedq.apps.flower.node_ids import node_number
from fedq.apps.flower.records import (
    Converter,
    check_reply,
    error_from_flower,
    make_flower_message,
    type_to_flower,
)
from fedq.apps.message import Message
from fedq.apps.recorddict import RecordDict


class FlowerClientApp(ClientApp):
    """Runs a Flower ClientApp: each message and the Context are handed over as Flower's, the reply is taken back.

    What the app leaves in its ``context.state`` is kept with the reply. An exception goes through unchanged, as that of
    any ClientApp, and leaves the Context as it was.
    """

    def __init__(self, app: Any) -> None:
        super().__init__()
        self.app = app

    def __call__(self, message: Message, context: Context) -> Message:
        flwr()
        convert = Converter()
        asked = message.metadata
        number = node_number(asked.dst_node_id)
        identify(asked.run_id, number)
        theirs = make_flower_message(
            {
                "run_id": asked.run_id,
                "message_id": asked.message_id,
                "src_node_id": SERVER,
                "dst_node_id": number,
                "reply_to_message_id": "",
                "group_id": asked.group_id,
                "created_at": asked.created_at,
                "ttl": asked.ttl,
                "message_type": type_to_flower(asked.message_type),
            },
            convert.to_flower(message.content),
        )
        kept = names("flwr.app").Context(
            run_id=context.run_id,
            node_id=number,
            node_config=dict(context.node_config),
            state=convert.to_flower(context.state),
            run_config=dict(context.run_config),
        )
        with logs_go_to_the_run():
            reply = check_reply(self.app(theirs, kept), theirs, asked.message_id)
        if reply.has_error():
            return Message(error_from_flower(reply.error), reply_to=message)
        content = convert.from_flower(reply.content)
        _replace(context.state, convert.from_flower(kept.state))
        return Message(content, reply_to=message)


def wrap_client_app(app: Any) -> FlowerClientApp:
    """A ClientApp that runs this one of Flower's.

    Raises:
        MissingExtra: flwr is not installed.
        TypeError: ``app`` is no ClientApp of Flower.
    """
    if not isinstance(app, names("flwr.clientapp").ClientApp):
        raise TypeError(f"expected a ClientApp of flwr, not {type(app).__name__}")
    return FlowerClientApp(app)


def _replace(state: RecordDict, by: RecordDict) -> None:
    for name in [name for name in state if name not in by]:
        del state[name]
    for name, record in by.items():
        state[name] = record
