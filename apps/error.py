"""What a message carries in place of content when something went wrong."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["Error", "ErrorCode"]


class ErrorCode(IntEnum):
    """Why a message was answered by an error. 0 to 8 have the numbers and meanings they have in Flower."""

    UNKNOWN = 0
    LOAD_CLIENT_APP_EXCEPTION = 1
    CLIENT_APP_RAISED_EXCEPTION = 2
    MESSAGE_UNAVAILABLE = 3
    REPLY_MESSAGE_UNAVAILABLE = 4
    NODE_UNAVAILABLE = 5
    MOD_FAILED_PRECONDITION = 6
    INVALID_FAB = 7
    CLIENT_APP_CRASHED = 8

    TIME_LIMIT = 100
    UNDECODABLE_PAYLOAD = 101
    UNKNOWN_ACTION = 102
    APP_NOT_TRUSTED = 103
    MESSAGE_EXPIRED = 104
    CANCELLED = 105
    MAX_DELIVERIES = 106
    INVALID_REPLY = 107
    INCONSISTENT_REPLY = 108


class Error:
    """An error as the answer to a message. Immutable.

    Parameters
    ----------
    code
        One of `ErrorCode`, or a number of the app's own (from 1000 on, to stay clear of ours).
    reason
        One or a few sentences that a person can act on.
    traceback
        Where it happened, if it was an exception.
    """

    __slots__ = ("_code", "_reason", "_traceback")

    _code: int
    _reason: str | None
    _traceback: str | None

    def __init__(self, code: int, reason: str | None = None, traceback: str | None = None) -> None:
        if not isinstance(code, int) or isinstance(code, bool):
            raise TypeError(f"the code of an Error is an int, not {type(code).__name__}")
        for name, text in (("reason", reason), ("traceback", traceback)):
            if text is not None and not isinstance(text, str):
                raise TypeError(f"the {name} of an Error is a str or None, not {type(text).__name__}")
        self._code = int(code)
        self._reason = reason
        self._traceback = traceback

    @property
    def code(self) -> int:
        """The number; compare it with `ErrorCode`."""
        return self._code

    @property
    def reason(self) -> str | None:
        """What happened and what to do about it."""
        return self._reason

    @property
    def traceback(self) -> str | None:
        """The traceback of the exception behind it, as text."""
        return self._traceback

    @property
    def name(self) -> str:
        """The name of the code, or `CODE_<n>` for a number that is not one of ours."""
        try:
            return ErrorCode(self._code).name
        except ValueError:
            return f"CODE_{self._code}"

    def __repr__(self) -> str:
        more = ", traceback=..." if self._traceback else ""
        return f"Error(code={self._code}, reason={self._reason!r}{more})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Error):
            return NotImplemented
        return (self._code, self._reason, self._traceback) == (other._code, other._reason, other._traceback)

    def __hash__(self) -> int:
        return hash((self._code, self._reason, self._traceback))
