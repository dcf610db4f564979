"""Packages that only an extra of fedq brings, imported when they are needed."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from fedq.apps.errors import FedqError


class MissingExtra(FedqError, ModuleNotFoundError):
    """A package is not installed that an extra of fedq brings. The text has the command that installs it."""


def require(module: str, extra: str, purpose: str) -> Any:
    """The module of that name.

    Args:
        module: as in ``import module``.
        extra: of fedq, which brings it.
        purpose: what it is needed for, for the error: "plots need matplotlib".

    Raises:
        MissingExtra: it is not installed. A module that is there and fails to import raises what it raises.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name != package:
            raise
        raise MissingExtra(f"{purpose}, which is not installed: pip install 'fedq[{extra}]'") from error
