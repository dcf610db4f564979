"""Strategies: how a ServerApp chooses nodes and makes one model of their replies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedq.apps.lazy import exports

if TYPE_CHECKING:
    from fedq.apps.strategy.asynchronous import Asynchronous
    from fedq.apps.strategy.bulyan import Bulyan
    from fedq.apps.strategy.compressed_broadcast import CompressedBroadcast
    from fedq.apps.strategy.dp_accountant import PrivacyAccountant
    from fedq.apps.strategy.dp_adaptive_clipping import (
        DifferentialPrivacyClientSideAdaptiveClipping,
        DifferentialPrivacyServerSideAdaptiveClipping,
    )
    from fedq.apps.strategy.dp_fixed_clipping import (
        DifferentialPrivacyClientSideFixedClipping,
        DifferentialPrivacyServerSideFixedClipping,
    )
    from fedq.apps.strategy.errors import CheckpointError, NoUsableReplies
    from fedq.apps.strategy.fedadagrad import FedAdagrad
    from fedq.apps.strategy.fedadam import FedAdam
    from fedq.apps.strategy.fedasync import FedAsync
    from fedq.apps.strategy.fedavg import FedAvg
    from fedq.apps.strategy.fedavgm import FedAvgM
    from fedq.apps.strategy.fedbuff import FedBuff
    from fedq.apps.strategy.fedmedian import FedMedian
    from fedq.apps.strategy.fedopt import FedOpt
    from fedq.apps.strategy.fedprox import FedProx
    from fedq.apps.strategy.fedtrimmedavg import FedTrimmedAvg
    from fedq.apps.strategy.fedxgb_bagging import FedXgbBagging
    from fedq.apps.strategy.fedxgb_cyclic import FedXgbCyclic
    from fedq.apps.strategy.fedyogi import FedYogi
    from fedq.apps.strategy.krum import Krum
    from fedq.apps.strategy.multikrum import MultiKrum
    from fedq.apps.strategy.qfedavg import QFedAvg
    from fedq.apps.strategy.result import Result
    from fedq.apps.strategy.secaggplus import SecAggPlus
    from fedq.apps.strategy.staleness import Staleness, constant_staleness, hinge_staleness, polynomial_staleness
    from fedq.apps.strategy.strategy import ReplyFailure, Strategy

__all__ = [
    "Asynchronous",
    "Bulyan",
    "CheckpointError",
    "CompressedBroadcast",
    "DifferentialPrivacyClientSideAdaptiveClipping",
    "DifferentialPrivacyClientSideFixedClipping",
    "DifferentialPrivacyServerSideAdaptiveClipping",
    "DifferentialPrivacyServerSideFixedClipping",
    "FedAdagrad",
    "FedAdam",
    "FedAsync",
    "FedAvg",
    "FedAvgM",
    "FedBuff",
    "FedMedian",
    "FedOpt",
    "FedProx",
    "FedTrimmedAvg",
    "FedXgbBagging",
    "FedXgbCyclic",
    "FedYogi",
    "Krum",
    "MultiKrum",
    "NoUsableReplies",
    "PrivacyAccountant",
    "QFedAvg",
    "ReplyFailure",
    "Result",
    "SecAggPlus",
    "Staleness",
    "Strategy",
    "constant_staleness",
    "hinge_staleness",
    "polynomial_staleness",
]

__getattr__, __dir__ = exports(
    __name__,
    {
        ".asynchronous": ["Asynchronous"],
        ".bulyan": ["Bulyan"],
        ".compressed_broadcast": ["CompressedBroadcast"],
        ".dp_accountant": ["PrivacyAccountant"],
        ".dp_adaptive_clipping": [
            "DifferentialPrivacyClientSideAdaptiveClipping",
            "DifferentialPrivacyServerSideAdaptiveClipping",
        ],
        ".dp_fixed_clipping": [
            "DifferentialPrivacyClientSideFixedClipping",
            "DifferentialPrivacyServerSideFixedClipping",
        ],
        ".errors": ["CheckpointError", "NoUsableReplies"],
        ".fedadagrad": ["FedAdagrad"],
        ".fedadam": ["FedAdam"],
        ".fedasync": ["FedAsync"],
        ".fedavg": ["FedAvg"],
        ".fedavgm": ["FedAvgM"],
        ".fedbuff": ["FedBuff"],
        ".fedmedian": ["FedMedian"],
        ".fedopt": ["FedOpt"],
        ".fedprox": ["FedProx"],
        ".fedtrimmedavg": ["FedTrimmedAvg"],
        ".fedxgb_bagging": ["FedXgbBagging"],
        ".fedxgb_cyclic": ["FedXgbCyclic"],
        ".fedyogi": ["FedYogi"],
        ".krum": ["Krum"],
        ".multikrum": ["MultiKrum"],
        ".qfedavg": ["QFedAvg"],
        ".result": ["Result"],
        ".secaggplus": ["SecAggPlus"],
        ".staleness": ["Staleness", "constant_staleness", "hinge_staleness", "polynomial_staleness"],
        ".strategy": ["ReplyFailure", "Strategy"],
    },
)
