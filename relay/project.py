"""Project directories: what ``[tool.fedq.app]`` in a ``pyproject.toml`` says, and the config of a run.

::

    [tool.fedq.app.components]
    serverapp = "package.server_app:app"
    clientapp = "package.client_app:app"

    [tool.fedq.app.config]
    num-rounds = 5
    optimizer.learning-rate = 0.1      # read as the key "optimizer.learning-rate"

    [tool.fedq.app]
    exclude = ["notebooks", "*.csv"]   # what does not travel, besides what never does (see bundles)

Without that table, ``[tool.flwr.app]`` says the same of an app that was written for Flower, which runs as it is.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedq.apps.client_app import ClientApp
from fedq.apps.errors import AppError, AppIncomplete, ConfigError
from fedq.apps.flower import is_flower
from fedq.apps.server_app import ServerApp
from fedq.apps.user_config import UserConfig, check_user_config

_REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*\Z")


class ProjectError(AppError):
    """A directory is no project, or its ``pyproject.toml`` does not say what is needed."""


class AppNotFound(AppError):
    """A ``module:object`` does not lead to an app."""


@dataclass(frozen=True, slots=True)
class Project:
    """A project directory. ``server`` and ``client`` are ``module:object``."""

    root: Path
    name: str
    server: str
    client: str
    config: UserConfig = field(default_factory=dict)
    exclude: tuple[str, ...] = ()


def read_project(path: str | os.PathLike[str]) -> Project:
    """The project in the directory ``path``.

    Raises:
        ProjectError: there is none, or its table lacks something; the text says what to write.
        ConfigError: a config value is no bool, int, float or str.
    """
    root = Path(path).expanduser().resolve()
    file = root / "pyproject.toml"
    if not root.is_dir():
        raise ProjectError(f"{path} is no directory; an app is a project directory, or two module:object references")
    if not file.is_file():
        raise ProjectError(f"{root} has no pyproject.toml; fedq new NAME writes a project to start from")
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ProjectError(f"{file} cannot be read: {error}") from error
    tools = document.get("tool", {})
    table, tool = tools.get("fedq", {}).get("app"), "fedq"
    if not isinstance(table, dict):
        table, tool = tools.get("flwr", {}).get("app"), "flwr"
    if not isinstance(table, dict):
        raise ProjectError(
            f"{file} has no table [tool.fedq.app.components] that names serverapp and clientapp (an app of Flower has "
            "[tool.flwr.app.components])"
        )
    components = table.get("components", table)
    if not isinstance(components, dict):
        raise ProjectError(f"{file}: tool.{tool}.app.components is a table with serverapp and clientapp")
    references = []
    for kind in ("serverapp", "clientapp"):
        reference = components.get(kind)
        if reference is None:
            raise ProjectError(f'{file} lacks tool.{tool}.app.components.{kind}, such as "{root.name}.{kind}:app"')
        references.append(check_reference(reference, f"{file}: {kind}"))
    key = "exclude" if tool == "fedq" else "fab-exclude"
    exclude = table.get(key, [])
    if not isinstance(exclude, list) or not all(isinstance(item, str) for item in exclude):
        raise ProjectError(f"{file}: tool.{tool}.app.{key} is a list of patterns")
    name = document.get("project", {}).get("name")
    return Project(
        root=root,
        name=name if isinstance(name, str) else root.name,
        server=references[0],
        client=references[1],
        config=flat_config(table.get("config", {}), f"config in {file}"),
        exclude=tuple(exclude),
    )


def check_reference(reference: object, what: str) -> str:
    """A ``module:object``, checked for its form."""
    if not isinstance(reference, str) or not _REFERENCE.match(reference):
        raise ProjectError(f'{what} is {reference!r}; it has the form "module:object", such as "package.server:app"')
    return reference


# -- config -----------------------------------------------------------------------------------------------------------


def flat_config(config: Mapping[Any, Any], what: str = "config") -> UserConfig:
    """A config with nested tables flattened: ``{"a": {"b": 1}}`` is ``{"a.b": 1}``. Raises ConfigError."""
    if not isinstance(config, Mapping):
        raise ConfigError(f"the {what} is a mapping of names to values, not {type(config).__name__}")
    return check_user_config(dict(_flat(config, "")), what)


def _flat(config: Mapping[Any, Any], prefix: str) -> Iterator[tuple[Any, Any]]:
    for key, value in config.items():
        name = f"{prefix}{key}" if isinstance(key, str) else key
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        else:
            yield name, value


def merged_config(base: UserConfig, override: Mapping[Any, Any] | None) -> UserConfig:
    """A project's config with what a submit overrides.

    Keys that the project does not have are refused, as in Flower, since most are typing errors; and so is a value of
    another type than the project's, except an int for a float. Raises ConfigError, naming the key.
    """
    config = dict(base)
    for key, value in flat_config(override or {}).items():
        if key not in base:
            known = ", ".join(sorted(base)) or "none"
            raise ConfigError(f"the app's config has no {key!r} to override; it has: {known}")
        before = base[key]
        if isinstance(before, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if type(value) is not type(before):
            raise ConfigError(
                f"config {key} = {value!r} is {_a(type(value))}, and the app wants {_a(type(before))} "
                f"(its own value is {before!r})"
            )
        config[key] = value
    return config


def _a(kind: type) -> str:
    return {bool: "a bool", int: "an int", float: "a float", str: "a str"}[kind]


# -- module:object ----------------------------------------------------------------------------------------------------


def load_reference(reference: str, kind: type[ServerApp] | type[ClientApp], *, folder: Path | None = None) -> Any:
    """The app that ``module:object`` names, with ``folder`` (default: the current one) first on the path.

    Raises:
        AppNotFound: there is no such module or object, or it is no app of this kind.
        ModuleNotFoundError and whatever else the module raises on import: unchanged.
    """
    module_name, _, name = check_reference(reference, "the app").partition(":")
    with first_on_path(folder or Path.cwd()):
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
                raise AppNotFound(f"there is no module {error.name!r} (wanted for {reference!r})") from error
            raise
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise AppNotFound(f"module {module_name!r} has no {name!r} (wanted for {reference!r})")
        found = getattr(found, part)
    return check_app(found, kind, f"{reference!r}")


def check_app(found: object, kind: type[ServerApp] | type[ClientApp], what: str) -> Any:
    """``found`` if it is an app of this kind that can be run; one of Flower's is wrapped."""
    if not isinstance(found, kind) and is_flower(found):
        found = _of_flower(found, kind, what)
    if not isinstance(found, kind):
        raise AppNotFound(f"{what} is {type(found).__name__}, not a {kind.__name__}")
    if isinstance(found, ServerApp) and not found.has_main:
        raise AppIncomplete(
            f"{what} is a ServerApp without a main function; decorate one with @app.main(): def main(grid, context)"
        )
    return found


def _of_flower(found: object, kind: type[ServerApp] | type[ClientApp], what: str) -> object:
    from fedq.apps.flower import wrap_client_app, wrap_server_app

    try:
        return wrap_server_app(found) if kind is ServerApp else wrap_client_app(found)
    except TypeError:
        raise AppNotFound(f"{what} is {type(found).__name__} of flwr, not a {kind.__name__}") from None


@contextmanager
def first_on_path(folder: Path) -> Iterator[None]:
    """``folder`` first on the path for imports, while inside."""
    entry = str(folder)
    sys.path.insert(0, entry)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if entry in sys.path:
            sys.path.remove(entry)
