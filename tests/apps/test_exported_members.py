"""The public surface of fedq.apps, by name."""

from __future__ import annotations

import subprocess
import sys

import pytest

import fedq.apps
import fedq.apps.errors
import fedq.apps.wire

APPS = {
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
    "ReplyRefused",
    "Replies",
    "ServerApp",
    "StrategyError",
    "TooFewNodes",
    "UnencodableValue",
    "UnknownAction",
    "UnsupportedDtype",
    "UserConfig",
    "UserConfigValue",
    "WireError",
}
# msgspec takes typing_extensions along where it is installed.
OURS = {"fedq", "numpy", "blake3", "msgspec", "typing_extensions"}
WIRE = {
    "VERSION",
    "Encoded",
    "content_of",
    "decode",
    "decode_context",
    "decode_error",
    "decode_message",
    "decode_user_config",
    "encode",
    "encode_context",
    "encode_error",
    "encode_message",
    "encode_user_config",
    "referenced",
}


@pytest.mark.parametrize(("module", "names"), [(fedq.apps, APPS), (fedq.apps.wire, WIRE)], ids=["apps", "wire"])
def test_a_package_exports_exactly_these_names(module: object, names: set[str]) -> None:
    exported = module.__all__  # type: ignore[attr-defined]
    assert set(exported) == names
    assert len(exported) == len(names)
    assert all(hasattr(module, name) for name in names)


def test_every_error_has_the_one_root_and_stands_in_the_tree_at_the_top_of_its_file() -> None:
    for name in fedq.apps.errors.__all__:
        error = getattr(fedq.apps.errors, name)
        assert issubclass(error, fedq.apps.FedqError)
        assert f" {name} " in f"{fedq.apps.errors.__doc__} ".replace("\n", " \n"), name
        assert hasattr(fedq.apps, name)


def test_importing_the_application_layer_imports_numpy_msgspec_and_blake3_and_nothing_else_of_others() -> None:
    code = """
import sys
before = set(sys.modules)
import fedq.apps
import fedq.apps.wire
stdlib = sys.stdlib_module_names
print(*sorted({m.partition(".")[0] for m in set(sys.modules) - before} - stdlib))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {name for name in done.stdout.split() if not name.startswith("_")} <= OURS
