"""Strategies: how a ServerApp chooses nodes and makes one model of their replies."""

from fedq.apps.strategy.errors import CheckpointError, NoUsableReplies
from fedq.apps.strategy.fedavg import FedAvg
from fedq.apps.strategy.result import Result
from fedq.apps.strategy.strategy import ReplyFailure, Strategy

__all__ = ["CheckpointError", "FedAvg", "NoUsableReplies", "ReplyFailure", "Result", "Strategy"]
