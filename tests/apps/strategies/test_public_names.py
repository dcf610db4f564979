"""The public surface of the strategies and mods, by name."""

from __future__ import annotations

import fedq.apps.mod
import fedq.apps.strategy

STRATEGIES = {
    "Asynchronous",
    "Bulyan",
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
    "QFedAvg",
    "SecAggPlus",
    "Strategy",
}
OTHERS = {
    "CheckpointError",
    "NoUsableReplies",
    "PrivacyAccountant",
    "ReplyFailure",
    "Result",
    "Staleness",
    "constant_staleness",
    "hinge_staleness",
    "polynomial_staleness",
}
MODS = {
    "AllowKeysMod",
    "ClippingMod",
    "DenyKeysMod",
    "SizeLimitMod",
    "train_arrays_only_mod",
    "withhold_error_text_mod",
    "ClientAppCallable",
    "CompressionMod",
    "LocalDpMod",
    "Mod",
    "adaptiveclipping_mod",
    "arrays_size_mod",
    "fixedclipping_mod",
    "make_ffn",
    "message_size_mod",
    "parameters_size_mod",
    "secaggplus_mod",
}


def test_the_strategies_are_these() -> None:
    assert set(fedq.apps.strategy.__all__) == STRATEGIES | OTHERS


def test_the_mods_are_these() -> None:
    assert set(fedq.apps.mod.__all__) == MODS
