"""Strategies: how a ServerApp chooses nodes and makes one model of their replies."""

from fedq.apps.strategy.fedavg import FedAvg
from fedq.apps.strategy.result import Result
from fedq.apps.strategy.strategy import ReplyFailure, Strategy

__all__ = ["FedAvg", "ReplyFailure", "Result", "Strategy"]
