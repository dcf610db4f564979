"""Flower's package: whether it is there, which release, and what moved between releases."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from importlib.metadata import version
from typing import Any

from fedq.apps.extras import require

log = logging.getLogger(__name__)

SUPPORTED = ((1, 22), (1, 43))
"""Releases that were tested: from the first, and below the second."""

SERVER = 1
"""Flower's integer for the server side."""


@cache
def flwr() -> Any:
    """The package. Raises MissingExtra; warns where the release is none of those that were tested."""
    package = require("flwr", "flower", "the app was written for Flower and needs flwr")
    found = version("flwr")
    numbers = tuple(int(part) for part in found.split(".")[:2] if part.isdigit())
    if not SUPPORTED[0] <= numbers < SUPPORTED[1]:
        low, high = (".".join(map(str, bound)) for bound in SUPPORTED)
        warnings.warn(f"flwr {found} is installed; fedq was tested with flwr>={low},<{high}", stacklevel=2)
    return package


@cache
def names(module: str) -> Any:
    """A module of Flower, such as ``flwr.app``."""
    flwr()
    return import_module(module)


def is_flower(found: object) -> bool:
    """Whether an object is of a class of Flower. Does not import it."""
    return any(kind.__module__.partition(".")[0] == "flwr" for kind in type(found).__mro__)


def empty_run(run_id: int) -> Any:
    """Flower's description of a run, as ``grid.run``."""
    for module in ("flwr.supercore.run", "flwr.common.typing"):
        with contextlib.suppress(ImportError, AttributeError):
            return import_module(module).Run.create_empty(run_id)
    raise ImportError("this release of flwr has no Run.create_empty")


def identify(run_id: int, node_id: int) -> None:
    """Tell newer releases which run and node messages that are made here come from."""
    with contextlib.suppress(ImportError):
        identity = import_module("flwr.supercore.task_identity").TaskIdentity
        identity.task_id, identity.run_id, identity.node_id = 1, run_id, node_id


@contextlib.contextmanager
def logs_go_to_the_run() -> Iterator[None]:
    """While inside, Flower's log goes where the run's does, and not to what was standard error at its import."""
    logger = logging.getLogger("flwr")
    if not logging.getLogger().handlers:
        yield
        return
    handlers, propagate, level = list(logger.handlers), logger.propagate, logger.level
    logger.handlers, logger.propagate = [], True
    logger.setLevel(max(level, logging.INFO))
    try:
        yield
    finally:
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)
