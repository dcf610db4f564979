"""What a message says about itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from fedq.apps.message_type import split_message_type

__all__ = ["DEFAULT_TTL", "Metadata"]

DEFAULT_TTL = 43200
"""Seconds that a message stays valid unless it says otherwise: twelve hours."""


@dataclass(frozen=True, slots=True)
class Metadata:
    """Metadata of a message. Immutable: `replace` makes a changed copy.

    Parameters
    ----------
    run_id
        The run; 0 until the message is pushed.
    message_id
        The message; empty until it is pushed.
    src_node_id
        The node it comes from; empty stands for the ServerApp.
    dst_node_id
        The node it goes to; empty stands for the ServerApp.
    reply_to_message_id
        The message that this one answers; empty if it is an instruction.
    group_id
        A name that belongs to several messages, such as the round.
    created_at
        When it was made, in seconds since 1970 (UTC).
    ttl
        For how many seconds from `created_at` it is valid.
    message_type
        `<category>` or `<category>.<action>`; raises ValueError if it is neither.
    """

    run_id: int
    message_id: str
    src_node_id: str
    dst_node_id: str
    reply_to_message_id: str
    group_id: str
    created_at: float
    ttl: float
    message_type: str

    def __post_init__(self) -> None:
        split_message_type(self.message_type)

    @property
    def expires_at(self) -> float:
        """When it ceases to be valid, in seconds since 1970 (UTC)."""
        return self.created_at + self.ttl

    def replace(self, **changes: Any) -> Metadata:
        """A copy with some fields changed."""
        return replace(self, **changes)
