"""The kinds of work that a message can ask for."""

from __future__ import annotations

from typing import Final, Self

__all__ = ["MessageType", "is_message_type", "split_message_type"]


class MessageType:
    """Names of the three categories. A message type is one of them, or `<category>.<action>`."""

    TRAIN: Final = "train"
    EVALUATE: Final = "evaluate"
    QUERY: Final = "query"

    def __new__(cls) -> Self:
        raise TypeError("MessageType holds names only; it cannot be instantiated")


CATEGORIES: Final = frozenset({MessageType.TRAIN, MessageType.EVALUATE, MessageType.QUERY})


def is_message_type(text: str) -> bool:
    """Whether `text` is `<category>` or `<category>.<action>`, the action being a Python identifier."""
    category, dot, action = text.partition(".")
    return category in CATEGORIES and (not dot or action.isidentifier())


def split_message_type(message_type: str) -> tuple[str, str | None]:
    """`"train.warmup"` as `("train", "warmup")`, `"train"` as `("train", None)`. Raises ValueError for other text."""
    if not is_message_type(message_type):
        raise ValueError(
            f"{message_type!r} is no message type: it is 'train', 'evaluate' or 'query', "
            "or one of them with an action, such as 'train.warmup'"
        )
    category, _, action = message_type.partition(".")
    return category, action or None
