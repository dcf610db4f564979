"""Packages that import nothing before a name is asked for.

A service that forks pays for each module it has loaded: with memory while it is idle, and again in each process it
forks. So a package's ``__init__`` says where its names are, and each is loaded by whoever asks first::

    if TYPE_CHECKING:
        from fedq.apps.strategy.fedavg import FedAvg

    __all__ = ["FedAvg"]
    __getattr__, __dir__ = exports(__name__, {".fedavg": ["FedAvg"]})
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from typing import Any


def load(*packages: str) -> Iterator[None]:
    """Load every name of such packages, one at each step: for what will be forked, and would load them each time."""
    for package in packages:
        module = import_module(package)
        for name in module.__all__:
            getattr(module, name)
            yield


def exports(
    package: str, homes: Mapping[str, Iterable[str]], rest: str = ""
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The ``__getattr__`` and the ``__dir__`` of a package whose names are in other modules.

    Args:
        package: its name.
        homes: module -> names; modules as in `importlib.import_module`, with a dot in front if they are the package's.
        rest: the module of those names in ``__all__`` that are in none of these.
    """
    namespace = vars(sys.modules[package])
    found = dict.fromkeys(namespace["__all__"], rest) if rest else {}
    found.update((name, home) for home, names in homes.items() for name in names)
    modules = {*homes, rest}

    def get(name: str) -> Any:
        if f".{name}" in modules:  # a module of the package, which importing it would have loaded if it were not lazy
            return import_module(f".{name}", package)
        if name not in found:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = namespace[name] = getattr(import_module(found[name], package), name)
        return value

    def names() -> list[str]:
        return sorted({*namespace, *found})

    return get, names
