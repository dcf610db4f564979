"""The application layer: what authors of a ServerApp or ClientApp import. Knows no Redis.

    from fedq.apps import ArrayRecord, ClientApp, Context, Grid, Message, MetricRecord, RecordDict, ServerApp
    from fedq.apps.strategy import FedAvg

Names and behaviour are those of `flwr.app`, `flwr.clientapp` and `flwr.serverapp` wherever Flower has the thing too;
node ids are the nodes' names.

Importing this package imports nothing; names load what they need (:mod:`fedq.apps.lazy`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedq.apps.lazy import exports

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

__getattr__, __dir__ = exports(
    __name__,
    {
        ".array": ["Array"],
        ".arrayrecord": ["ArrayRecord"],
        ".client_app": ["ClientApp"],
        ".configrecord": ["ConfigRecord"],
        ".context": ["Context"],
        ".error": ["Error", "ErrorCode"],
        ".grid": ["Grid"],
        ".message": ["Message"],
        ".message_type": ["MessageType"],
        ".metadata": ["DEFAULT_TTL", "Metadata"],
        ".metricrecord": ["MetricRecord"],
        ".recorddict": ["RecordDict"],
        ".replies": ["Replies"],
        ".server_app": ["ServerApp"],
        ".typing": [
            "ConfigRecordValues",
            "ConfigScalar",
            "ConfigScalarList",
            "MetricRecordValues",
            "MetricScalar",
            "MetricScalarList",
            "NDArray",
        ],
        ".user_config": ["UserConfig", "UserConfigValue"],
    },
    rest=".errors",
)
