"""Every error of fedq has one root.

    FedqError
     ├── WireError                     bytes that are not what they should be: the one error of decoding
     ├── TooFewNodes                   not enough nodes within the time given (also a TimeoutError)
     └── AppError                      a mistake in an app, or in what was given to it
          ├── ConfigError              a config value of a wrong type (also a TypeError)
          ├── MessageInitializationError  a Message was made of arguments that do not fit (also a TypeError)
          ├── UnsupportedDtype         an array whose dtype cannot travel (also a ValueError)
          ├── UnencodableValue         a value that cannot travel (also a ValueError)
          ├── AppIncomplete            an app without the function that is needed, such as a ServerApp without main
          ├── UnknownAction            the ClientApp has no function for this message type
          ├── InvalidReply             what a ClientApp returned is no reply to its message
          ├── InconsistentReply        a reply whose content does not fit the other replies or the model
          ├── CheckpointUnavailable    `context.save` where no checkpoint can be written
          ├── ReplyRefused             a mod does not let a reply out
          └── StrategyError            a strategy cannot go on

Layers above add branches of their own. An error carries the ids that are known: `run_id`, `node_id`, `message_id`.
"""

from __future__ import annotations

__all__ = [
    "AppError",
    "AppIncomplete",
    "CheckpointUnavailable",
    "ConfigError",
    "FedqError",
    "InconsistentReply",
    "InvalidReply",
    "MessageInitializationError",
    "ReplyRefused",
    "StrategyError",
    "TooFewNodes",
    "UnencodableValue",
    "UnknownAction",
    "UnsupportedDtype",
    "WireError",
]


class FedqError(Exception):
    """Root of all errors of fedq. The text says what happened and what to do; the ids say to whom."""

    def __init__(
        self,
        message: str = "",
        *,
        run_id: int | None = None,
        node_id: str | None = None,
        message_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.run_id = run_id
        self.node_id = node_id
        self.message_id = message_id


class WireError(FedqError):
    """Bytes could not be decoded: damaged, hostile, of an unknown version, or an array they name is not at hand."""


class TooFewNodes(FedqError, TimeoutError):
    """Fewer nodes than wanted were there when the time was up."""


class AppError(FedqError):
    """A mistake in an app, or in what an app was given."""


class ConfigError(AppError, TypeError):
    """A config value has a type that configs cannot hold."""


class MessageInitializationError(AppError, TypeError):
    """A Message was made of arguments that do not fit together."""


class UnsupportedDtype(AppError, ValueError):
    """An array has a dtype that cannot travel, such as object or string."""


class UnencodableValue(AppError, ValueError):
    """A value cannot be written in the wire format, such as an integer of more than 64 bits."""


class AppIncomplete(AppError):
    """An app lacks the function that was to be called."""


class UnknownAction(AppError):
    """A ClientApp has no function for the type of the message."""


class InvalidReply(AppError):
    """A ClientApp returned something that is no reply to the message it was given."""


class InconsistentReply(AppError):
    """The content of a reply does not fit the model or the other replies."""


class CheckpointUnavailable(AppError):
    """`context.save` was called where no checkpoint can be written."""


class ReplyRefused(AppError):
    """A mod does not let a reply out. Its text goes to the ServerApp: it should say which rule was broken, not quote
    what was to be kept back."""


class StrategyError(AppError):
    """A strategy cannot go on."""
