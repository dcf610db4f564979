"""Messages between ServerApp and ClientApps."""

from __future__ import annotations

import logging
import math
import time
from typing import Any, overload

from fedq.apps.error import Error
from fedq.apps.errors import MessageInitializationError
from fedq.apps.metadata import DEFAULT_TTL, Metadata
from fedq.apps.recorddict import RecordDict

__all__ = ["Message", "make_message"]

log = logging.getLogger("fedq.apps")

# A reply may claim this many seconds more than its instruction has left, without a warning.
_TTL_TOLERANCE = 0.1


class Message:
    """A message: metadata, and either content or an error.

    An instruction, as a ServerApp makes it, a reply, and a reply that is an error::

        Message(content, dst_node_id, "train", ttl=3600, group_id="1")
        Message(content, reply_to=message)
        Message(Error(ErrorCode.UNKNOWN, "why"), reply_to=message)

    Parameters
    ----------
    content
        A RecordDict.
    error
        An Error, in place of content.
    dst_node_id
        The node it goes to.
    message_type
        `"train"`, `"evaluate"` or `"query"`, or one of them with an action such as `"train.warmup"`.
    ttl
        For how many seconds it is valid: by default twelve hours, for a reply what its instruction has left, which is
        also the most it can have.
    group_id
        A name that belongs to several messages, such as the round.
    reply_to
        The message that this one answers. Run, type and group are taken from it.

    The metadata cannot be changed. Content can be replaced, not turned into an error, and an error not into content.
    Raises MessageInitializationError (a TypeError) for arguments that do not fit together, ValueError for an unknown
    message type.
    """

    __slots__ = ("__dict__", "__weakref__", "_content", "_error", "_metadata")

    _metadata: Metadata
    _content: RecordDict | None
    _error: Error | None

    @overload
    def __init__(
        self,
        content: RecordDict,
        dst_node_id: str,
        message_type: str,
        *,
        ttl: float | None = None,
        group_id: str | None = None,
    ) -> None: ...

    @overload
    def __init__(self, content: RecordDict, *, reply_to: Message, ttl: float | None = None) -> None: ...

    @overload
    def __init__(self, error: Error, *, reply_to: Message, ttl: float | None = None) -> None: ...

    def __init__(
        self,
        *args: Any,
        dst_node_id: str | None = None,
        message_type: str | None = None,
        content: RecordDict | None = None,
        error: Error | None = None,
        ttl: float | None = None,
        group_id: str | None = None,
        reply_to: Message | None = None,
    ) -> None:
        if len(args) > 3:
            raise _misfit(f"at most three arguments go by position, not {len(args)}")
        first, second, third = [*args, None, None, None][:3]
        for name, positional, named in (
            ("dst_node_id", second, dst_node_id),
            ("message_type", third, message_type),
        ):
            if positional is not None and named is not None:
                raise _misfit(f"{name} is given twice")
        dst_node_id = second if dst_node_id is None else dst_node_id
        message_type = third if message_type is None else message_type
        if sum(value is not None for value in (first, content, error)) != 1:
            raise _misfit("exactly one of content and error is needed")
        if isinstance(first, RecordDict):
            content = first
        elif isinstance(first, Error):
            error = first
        elif first is not None:
            raise _misfit(f"content is a RecordDict, or an Error stands in its place, not {type(first).__name__}")
        for name, value, kind in (
            ("content", content, RecordDict),
            ("error", error, Error),
            ("dst_node_id", dst_node_id, str),
            ("message_type", message_type, str),
            ("group_id", group_id, str),
            ("reply_to", reply_to, Message),
        ):
            if value is not None and not isinstance(value, kind):
                raise _misfit(f"{name} is of type {kind.__name__}, not {type(value).__name__}")
        if ttl is not None and not (isinstance(ttl, int | float) and math.isfinite(ttl) and ttl >= 0):
            raise _misfit(f"ttl is a number of seconds, not {ttl!r}")

        self._content = content
        self._error = error
        if reply_to is not None:
            if not (dst_node_id is None and message_type is None and group_id is None):
                raise _misfit("a reply takes dst_node_id, message_type and group_id from the message it answers")
            self._metadata = _reply_metadata(reply_to.metadata, ttl)
        else:
            if content is None or dst_node_id is None or message_type is None:
                raise _misfit("an instruction needs content, dst_node_id and message_type")
            self._metadata = Metadata(
                run_id=0,
                message_id="",
                src_node_id="",
                dst_node_id=dst_node_id,
                reply_to_message_id="",
                group_id=group_id or "",
                created_at=time.time(),
                ttl=ttl or DEFAULT_TTL,
                message_type=message_type,
            )

    @property
    def metadata(self) -> Metadata:
        """What the message says about itself."""
        return self._metadata

    @property
    def content(self) -> RecordDict:
        """The content. Raises ValueError if the message carries an error; `has_content` tells."""
        if self._content is None:
            raise ValueError(f"the message carries an error and no content (ask has_content() first): {self._error!r}")
        return self._content

    @content.setter
    def content(self, value: RecordDict) -> None:
        if self._error is not None:
            raise ValueError("a message that carries an error cannot have content")
        if not isinstance(value, RecordDict):
            raise TypeError(f"the content of a message is a RecordDict, not {type(value).__name__}")
        self._content = value

    @property
    def error(self) -> Error:
        """The error. Raises ValueError if the message carries content; `has_error` tells."""
        if self._error is None:
            raise ValueError("the message carries content and no error (ask has_error() first)")
        return self._error

    @error.setter
    def error(self, value: Error) -> None:
        if self._content is not None:
            raise ValueError("a message that carries content cannot have an error")
        if not isinstance(value, Error):
            raise TypeError(f"the error of a message is an Error, not {type(value).__name__}")
        self._error = value

    def has_content(self) -> bool:
        """Whether it carries content."""
        return self._content is not None

    def has_error(self) -> bool:
        """Whether it carries an error."""
        return self._error is not None

    def create_reply(self, content: RecordDict, ttl: float | None = None) -> Message:
        """A reply to this message; the same as `Message(content, reply_to=self, ttl=ttl)`."""
        return Message(content, reply_to=self, ttl=ttl)

    def create_error_reply(self, error: Error, ttl: float | None = None) -> Message:
        """A reply to this message that is an error; the same as `Message(error, reply_to=self, ttl=ttl)`."""
        return Message(error, reply_to=self, ttl=ttl)

    def __repr__(self) -> str:
        body = f"content={self._content!r}" if self._error is None else f"error={self._error!r}"
        return f"Message(metadata={self._metadata!r}, {body})"


def make_message(metadata: Metadata, content: RecordDict | None = None, error: Error | None = None) -> Message:
    """A message with the given metadata and exactly one of content and error. For runtimes and tests."""
    if (content is None) == (error is None):
        raise _misfit("exactly one of content and error is needed")
    message = Message.__new__(Message)
    message._metadata = metadata
    message._content = content
    message._error = error
    return message


def _reply_metadata(instruction: Metadata, ttl: float | None) -> Metadata:
    now = time.time()
    left = instruction.expires_at - now
    if ttl is not None and ttl - left > _TTL_TOLERANCE:
        log.warning("a reply cannot be valid for %.2f s: its message has %.2f s left, and so has the reply", ttl, left)
        ttl = left
    return Metadata(
        run_id=instruction.run_id,
        message_id="",
        src_node_id=instruction.dst_node_id,
        dst_node_id=instruction.src_node_id,
        reply_to_message_id=instruction.message_id,
        group_id=instruction.group_id,
        created_at=now,
        ttl=ttl or left,
        message_type=instruction.message_type,
    )


def _misfit(why: str) -> MessageInitializationError:
    return MessageInitializationError(
        f"{why}. A Message is made as Message(content, dst_node_id, message_type, ttl=..., group_id=...) "
        "or Message(content or error, reply_to=message, ttl=...)"
    )
