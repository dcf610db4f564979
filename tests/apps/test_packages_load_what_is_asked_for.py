"""A service carries no module that it does not need: its packages load a name when somebody asks for it."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from fedq.apps.lazy import exports, load

PACKAGES = ["fedq.apps", "fedq.apps.flower", "fedq.apps.mod", "fedq.apps.strategy", "fedq.node", "fedq.relay"]


def loaded_after(code: str) -> set[str]:
    """The modules that an interpreter has loaded after ``code``."""
    command = [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize("package", PACKAGES)
def test_each_name_is_where_type_checkers_are_told_that_it_is(package: str) -> None:
    module = import_module(package)
    assert module.__file__ is not None
    told = {
        alias.name: imported.module
        for block in ast.parse(Path(module.__file__).read_text()).body
        if isinstance(block, ast.If)
        for imported in block.body
        if isinstance(imported, ast.ImportFrom)
        for alias in imported.names
    }
    assert set(told) == set(module.__all__) <= set(dir(module))
    for name, home in told.items():
        assert getattr(module, name) is getattr(import_module(str(home)), name)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_by_itself_loads_neither_numpy_nor_anything_below_it(package: str) -> None:
    loaded = loaded_after(f"import {package}")
    assert "numpy" not in loaded
    assert {name for name in loaded if name.startswith(f"{package}.")} <= {"fedq.apps.lazy"} | set(PACKAGES)


def test_a_supernode_loads_no_strategy_no_database_and_nothing_for_flower() -> None:
    loaded = loaded_after("import fedq.cli.supernode, fedq.node.service")
    assert "fedq.node.service" in loaded
    assert not loaded & {"fedq.apps.strategy.strategy", "sqlite3", "fedq.apps.flower.client_app", "fedq.relay.grid"}


def test_load_loads_every_name_of_a_package() -> None:
    loaded = loaded_after("from fedq.apps.lazy import load\nfor _ in load('fedq.apps.strategy'): pass")
    assert {"fedq.apps.strategy.fedavg", "fedq.apps.strategy.secaggplus"} <= loaded


def test_a_name_that_a_package_does_not_have_is_an_attribute_error_and_a_submodule_can_be_imported() -> None:
    import fedq.apps

    with pytest.raises(AttributeError, match=r"'fedq\.apps' has no attribute 'FedAvgg'"):
        fedq.apps.FedAvgg  # type: ignore[attr-defined]  # noqa: B018
    from fedq.apps import wire

    assert wire.__name__ == "fedq.apps.wire"


def test_a_module_of_a_package_is_its_attribute_as_if_it_had_been_loaded_with_it() -> None:
    code = "import fedq.apps.strategy as s; assert s.fedavg.FedAvg is s.FedAvg"
    assert "fedq.apps.strategy.fedavg" in loaded_after(code)


def test_a_name_is_looked_up_once() -> None:
    get, names = exports(__name__, {"fedq.apps.digest": ["digest_of"]})
    found = get("digest_of")
    assert globals().pop("digest_of") is found
    assert "digest_of" in names()
    assert list(load()) == []
