"""The application layer: what authors of a ServerApp or ClientApp import. Knows no Redis.

    from fedq.apps import ArrayRecord, ClientApp, Context, Grid, Message, MetricRecord, RecordDict, ServerApp
    from fedq.apps.strategy import FedAvg

Names and behaviour are those of `flwr.app`, `flwr.clientapp` and `flwr.serverapp` wherever Flower has the thing too;
node ids are the nodes' names.

Importing this package imports nothing; names load what they need. :func:`load` loads all of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedq.apps.array import Array
    from fedq.apps.arrayrecord import ArrayRecord
    from fedq.apps.client_app import ClientApp
    from fedq.apps.configrecord import ConfigRecord
    from fedq.apps.context import Context
    from fedq.apps.error import Error, ErrorCode
    from fedq.apps.errors import (
        AppError,
        AppIncomplete,
        CheckpointUnavailable,
        ConfigError,
        FedqError,
        InconsistentReply,
        InvalidReply,
        MessageInitializationError,
        ReplyRefused,
        StrategyError,
        TooFewNodes,
        UnencodableValue,
        UnknownAction,
        UnsupportedDtype,
        WireError,
    )
    from fedq.apps.grid import Grid
    from fedq.apps.message import Message
    from fedq.apps.message_type import MessageType
    from fedq.apps.metadata import DEFAULT_TTL, Metadata
    from fedq.apps.metricrecord import MetricRecord
    from fedq.apps.recorddict import RecordDict
    from fedq.apps.replies import Replies
    from fedq.apps.server_app import ServerApp
    from fedq.apps.typing import (
        ConfigRecordValues,
        ConfigScalar,
        ConfigScalarList,
        MetricRecordValues,
        MetricScalar,
        MetricScalarList,
        NDArray,
    )
    from fedq.apps.user_config import UserConfig, UserConfigValue

__all__ = [
    "DEFAULT_TTL",
    "AppError",
    "AppIncomplete",
    "Array",
    "ArrayRecord",
    "CheckpointUnavailable",
    "ClientApp",
    "ConfigError",
    "ConfigRecord",
    "ConfigRecordValues",
    "ConfigScalar",
    "ConfigScalarList",
    "Context",
    "Error",
    "ErrorCode",
    "FedqError",
    "Grid",
    "InconsistentReply",
    "InvalidReply",
    "Message",
    "MessageInitializationError",
    "MessageType",
    "Metadata",
    "MetricRecord",
    "MetricRecordValues",
    "MetricScalar",
    "MetricScalarList",
    "NDArray",
    "RecordDict",
    "Replies",
    "ReplyRefused",
    "ServerApp",
    "StrategyError",
    "TooFewNodes",
    "UnencodableValue",
    "UnknownAction",
    "UnsupportedDtype",
    "UserConfig",
    "UserConfigValue",
    "WireError",
]

_HOMES = {
    "Array": "array",
    "ArrayRecord": "arrayrecord",
    "ClientApp": "client_app",
    "ConfigRecord": "configrecord",
    "ConfigRecordValues": "typing",
    "ConfigScalar": "typing",
    "ConfigScalarList": "typing",
    "Context": "context",
    "DEFAULT_TTL": "metadata",
    "Error": "error",
    "ErrorCode": "error",
    "Grid": "grid",
    "Message": "message",
    "MessageType": "message_type",
    "Metadata": "metadata",
    "MetricRecord": "metricrecord",
    "MetricRecordValues": "typing",
    "MetricScalar": "typing",
    "MetricScalarList": "typing",
    "NDArray": "typing",
    "RecordDict": "recorddict",
    "Replies": "replies",
    "ServerApp": "server_app",
    "UserConfig": "user_config",
    "UserConfigValue": "user_config",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def load() -> None:
    """Load every name: where processes are forked that would otherwise load them, each for itself."""
    for name in __all__:
        __getattr__(name)
