"""The type of a mod and how mods are put around a function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from fedq.apps.context import Context
from fedq.apps.message import Message

ClientAppCallable: TypeAlias = Callable[[Message, Context], Message]
"""What a ClientApp registers: takes a message and the Context of (run, node), returns the reply."""

Mod: TypeAlias = Callable[[Message, Context, ClientAppCallable], Message]
"""What surrounds such a function: the third argument calls what lies inside."""


def make_ffn(ffn: ClientAppCallable, mods: Sequence[Mod]) -> ClientAppCallable:
    """Put mods around a function; the first of the list is the outermost. Without mods it is the function itself."""
    for mod in reversed(mods):
        ffn = _around(mod, ffn)
    return ffn


def _around(mod: Mod, inner: ClientAppCallable) -> ClientAppCallable:
    def call(message: Message, context: Context) -> Message:
        return mod(message, context, inner)

    return call
