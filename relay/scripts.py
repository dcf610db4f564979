"""The Lua steps: loaded from ``relay/lua``, called by digest.

Each transition of the protocol is one file there, which lists the keys it touches on top. A few helpers that all of
them share stand in ``_prelude.lua``. Nodes may call scripts but not load them: SuperLinks load all of them at start,
and whoever may does so again when a server has lost them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import redis
from redis.exceptions import NoPermissionError, NoScriptError

from fedq.relay.errors import RelayUnavailable


@cache
def source(name: str) -> str:
    """The text of step ``name``, helpers included."""
    folder = files("fedq.relay") / "lua"
    return (folder / "_prelude.lua").read_text() + (folder / f"{name}.lua").read_text()


@cache
def digest(name: str) -> str:
    """The digest by which a server knows the step (SHA-1, as EVALSHA wants it)."""
    return hashlib.sha1(source(name).encode(), usedforsecurity=False).hexdigest()


def names() -> list[str]:
    """The names of all steps."""
    folder = files("fedq.relay") / "lua"
    return sorted(
        entry.name[:-4] for entry in folder.iterdir() if entry.name.endswith(".lua") and not entry.name.startswith("_")
    )


def warm() -> None:
    """Work out every digest now, so that forked processes need not read the files again."""
    for name in names():
        digest(name)


def load(client: redis.Redis) -> None:
    """Make the server know every step. Idempotent; needs the right to SCRIPT LOAD."""
    with client.pipeline(transaction=False) as pipe:
        for name in names():
            pipe.script_load(source(name))
        pipe.execute()


def call(client: redis.Redis, name: str, keys: Sequence[str], args: Sequence[Any]) -> list[Any]:
    """Run a step; returns the list it answers."""
    try:
        reply: list[Any] = client.evalsha(digest(name), len(keys), *keys, *args)
    except NoScriptError:
        try:
            # All of them: who may load steps does so for those who may not, and may never call theirs.
            load(client)
        except NoPermissionError:
            raise RelayUnavailable(
                f"the server does not know the step {name!r} and this user may not load it; "
                "a SuperLink loads the steps when it starts: is one running (and of the same version)?"
            ) from None
        reply = client.evalsha(digest(name), len(keys), *keys, *args)
    return reply
