"""Strategies: how a ServerApp chooses nodes and makes one model of their replies."""

from fedq.apps.strategy.errors import CheckpointError, NoUsableReplies
from fedq.apps.strategy.fedadagrad import FedAdagrad
from fedq.apps.strategy.fedadam import FedAdam
from fedq.apps.strategy.fedavg import FedAvg
from fedq.apps.strategy.fedavgm import FedAvgM
from fedq.apps.strategy.fedopt import FedOpt
from fedq.apps.strategy.fedprox import FedProx
from fedq.apps.strategy.fedyogi import FedYogi
from fedq.apps.strategy.result import Result
from fedq.apps.strategy.strategy import ReplyFailure, Strategy

__all__ = [
    "CheckpointError",
    "FedAdagrad",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedOpt",
    "FedProx",
    "FedYogi",
    "NoUsableReplies",
    "ReplyFailure",
    "Result",
    "Strategy",
]
