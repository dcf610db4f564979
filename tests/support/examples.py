"""The app projects under ``examples/``, loaded as a deployment would load them."""

from __future__ import annotations

import importlib
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedq.apps import ClientApp, ServerApp

EXAMPLES = Path(__file__).parents[2] / "examples"


@dataclass(frozen=True)
class Project:
    """A loaded project."""

    path: Path
    serverapp: ServerApp
    clientapp: ClientApp
    config: dict[str, Any]

    def module(self, name: str) -> Any:
        """One of its modules, such as ``trees.task``."""
        return importlib.import_module(name)


@contextmanager
def loaded(name: str) -> Iterator[Project]:
    """The apps and the config of ``examples/NAME``, importable for as long as the block."""
    path = EXAMPLES / name
    declared = tomllib.loads((path / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["fedq"]["app"]
    references = {kind: reference.partition(":") for kind, reference in declared["components"].items()}
    packages = {module.partition(".")[0] for module, _, _ in references.values()}
    sys.path.insert(0, str(path))
    try:
        apps: dict[str, Any] = {
            kind: getattr(importlib.import_module(module), attribute)
            for kind, (module, _, attribute) in references.items()
        }
        yield Project(path, **apps, config=declared.get("config", {}))
    finally:
        sys.path.remove(str(path))
        for module in [module for module in sys.modules if module.partition(".")[0] in packages]:
            del sys.modules[module]
