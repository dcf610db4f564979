"""``fedq --version``."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def fedq_version() -> str:
    """The installed version, or ``unknown`` when the package runs uninstalled."""
    try:
        return version("fedq")
    except PackageNotFoundError:
        return "unknown"


def version_lines() -> list[str]:
    """What ``fedq --version`` prints: our version, and the server's, or why there is none."""
    lines = [f"fedq {fedq_version()}"]
    from fedq.apps.errors import FedqError
    from fedq.relay.connection import Relay, without_password

    try:
        with Relay.connect(client_name="fedq-version", retries=0) as relay:
            place = without_password(relay.url)
            server = relay.check()
    except FedqError as error:
        lines.append(f"server: {' '.join(str(error).split())}")
    else:
        lines.append(f"server: {server.kind} {server.version} at {place}")
    return lines
