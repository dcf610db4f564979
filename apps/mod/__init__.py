"""Mods: functions around a ClientApp's function, which see its message on the way in and its reply on the way out.

A mod is called as ``mod(message, context, call_next)`` and returns the reply, usually that of
``call_next(message, context)``. Mods of an app run outside of those of a function, and in each list the first is the
outermost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedq.apps.lazy import exports

if TYPE_CHECKING:
    from fedq.apps.mod.clipping import ClippingMod, LocalDpMod, adaptiveclipping_mod, fixedclipping_mod
    from fedq.apps.mod.compose import ClientAppCallable, Mod, make_ffn
    from fedq.apps.mod.compression import CompressionMod
    from fedq.apps.mod.limits import (
        AllowKeysMod,
        DenyKeysMod,
        SizeLimitMod,
        train_arrays_only_mod,
        withhold_error_text_mod,
    )
    from fedq.apps.mod.secaggplus import secaggplus_mod
    from fedq.apps.mod.sizes import arrays_size_mod, message_size_mod, parameters_size_mod

__all__ = [
    "AllowKeysMod",
    "ClientAppCallable",
    "ClippingMod",
    "CompressionMod",
    "DenyKeysMod",
    "LocalDpMod",
    "Mod",
    "SizeLimitMod",
    "adaptiveclipping_mod",
    "arrays_size_mod",
    "fixedclipping_mod",
    "make_ffn",
    "message_size_mod",
    "parameters_size_mod",
    "secaggplus_mod",
    "train_arrays_only_mod",
    "withhold_error_text_mod",
]

__getattr__, __dir__ = exports(
    __name__,
    {
        ".clipping": ["ClippingMod", "LocalDpMod", "adaptiveclipping_mod", "fixedclipping_mod"],
        ".compose": ["ClientAppCallable", "Mod", "make_ffn"],
        ".compression": ["CompressionMod"],
        ".limits": ["AllowKeysMod", "DenyKeysMod", "SizeLimitMod", "train_arrays_only_mod", "withhold_error_text_mod"],
        ".secaggplus": ["secaggplus_mod"],
        ".sizes": ["arrays_size_mod", "message_size_mod", "parameters_size_mod"],
    },
)
