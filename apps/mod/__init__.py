"""Mods: functions around a ClientApp's function, which see its message on the way in and its reply on the way out.

A mod is called as ``mod(message, context, call_next)`` and returns the reply, usually that of
``call_next(message, context)``. Mods of an app run outside of those of a function, and in each list the first is the
outermost.
"""

from fedq.apps.mod.compose import ClientAppCallable, Mod, make_ffn

__all__ = ["ClientAppCallable", "Mod", "make_ffn"]
