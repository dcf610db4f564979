"""How an operator names a mod: ``package.module:attribute``, or ``package.module:factory(10, name="x")``."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from importlib import import_module
from inspect import isclass, signature
from typing import Any

from fedq.apps.errors import FedqError
from fedq.apps.mod import Mod


class SettingsError(FedqError, ValueError):
    """A setting that no SuperNode can work with. The text names it and says what is allowed."""


@dataclass(frozen=True, slots=True)
class ModName:
    """The name of a mod, parsed. Two names are the same if their `text` is.

    Attributes:
        text: the name in its one normal form, such as ``fedq.apps.mod:SizeLimitMod(1000000)``.
        module: to import.
        path: attributes from there to the mod, or to what makes it.
        arguments: for the call that makes it; None: it is a mod as it is.
        keywords: likewise.
    """

    text: str
    module: str
    path: tuple[str, ...]
    arguments: tuple[Any, ...] | None = None
    keywords: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def parse(cls, text: str) -> ModName:
        """Read a name. Arguments are literals: numbers, texts, booleans, None, and lists and dicts of them.

        Raises:
            SettingsError: it is no such name.
        """
        module, colon, rest = text.strip().partition(":")
        try:
            if not colon or not all(part.isidentifier() for part in module.split(".")):
                raise ValueError("there is no module before a colon")
            node = ast.parse(rest.strip(), mode="eval").body
            normal = f"{module}:{ast.unparse(node)}"
            if not isinstance(node, ast.Call):
                return cls(normal, module, _path(node))
            if any(keyword.arg is None for keyword in node.keywords):
                raise ValueError("** has no place there")
            arguments = tuple(ast.literal_eval(argument) for argument in node.args)
            keywords = tuple((str(k.arg), ast.literal_eval(k.value)) for k in node.keywords)
            return cls(normal, module, _path(node.func), arguments, keywords)
        except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError) as error:
            raise SettingsError(
                f"{text!r} names no mod ({error}); write package.module:attribute, or package.module:factory(1, x='y') "
                "with numbers and texts as arguments"
            ) from error

    def load(self) -> Mod:
        """Import it, and call it where the name says so.

        Raises:
            SettingsError: it cannot be imported or made, or what comes of it is no mod.
        """
        try:
            found: Any = import_module(self.module)
        except ModuleNotFoundError as error:
            raise SettingsError(
                f"the mod {self.text} cannot be imposed: there is no module {error.name!r} here; install its package, "
                "or name its folder in PYTHONPATH"
            ) from error
        except Exception as error:
            raise SettingsError(
                f"the mod {self.text} cannot be imposed: its module fails with {type(error).__name__}: {error}"
            ) from error
        for place, name in enumerate(self.path):
            try:
                found = getattr(found, name)
            except AttributeError:
                where = ".".join((self.module, *self.path[:place]))
                raise SettingsError(f"the mod {self.text} cannot be imposed: {where} has no {name!r}") from None
        if self.arguments is not None:
            try:
                found = found(*self.arguments, **dict(self.keywords))
            except Exception as error:
                raise SettingsError(
                    f"the mod {self.text} cannot be imposed: making it fails with {type(error).__name__}: {error}"
                ) from error
        elif isclass(found):
            raise SettingsError(f"{self.text} is a class: write its arguments too, as in {self.text}(...)")
        return _checked(self.text, found)


def _path(node: ast.expr) -> tuple[str, ...]:
    if isinstance(node, ast.Name):
        return (node.id,)
    if isinstance(node, ast.Attribute):
        return (*_path(node.value), node.attr)
    raise ValueError("there is no name behind the colon")


def _checked(text: str, found: Any) -> Mod:
    try:
        signature(found).bind(None, None, None)
    except (TypeError, ValueError) as error:
        raise SettingsError(
            f"{text} is no mod: it must be callable as mod(message, context, call_next) ({error})"
        ) from error
    mod: Mod = found
    return mod


__all__ = ["ModName", "SettingsError"]
