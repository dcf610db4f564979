"""The names that users import, and nothing else."""

from __future__ import annotations

import fedq.relay
from fedq.apps import FedqError


def test_the_package_exports_these_names() -> None:
    assert fedq.relay.__all__ == sorted(fedq.relay.__all__)
    assert set(fedq.relay.__all__) == {
        *("SuperLink", "Run", "RunResult", "RunInfo", "Event", "NodeState"),
        *("RelayError", "RelayUnavailable", "RelayAuthError", "RelayReadOnly", "RelayFull", "RelayMisconfigured"),
        *(
            "RelayCorrupt",
            "NodeUnknown",
            "NodeTaken",
            "RunNotFound",
            "RunOver",
            "RunStopped",
            "RunFailed",
            "RunTimeout",
        ),
        *("Fenced", "RevisionLost", "JournalMismatch", "ObjectMissing", "ObjectCorrupt"),
        *("AppNotFound", "ProjectError", "BundleError", "LoadError"),
    }


def test_each_is_there_and_every_error_has_one_root() -> None:
    for name in fedq.relay.__all__:
        found = getattr(fedq.relay, name)
        assert found.__name__ == name
        assert not issubclass(found, Exception) or issubclass(found, FedqError)
    assert set(fedq.relay.__all__) <= set(dir(fedq.relay))
