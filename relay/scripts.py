"""The Lua steps: loaded from ``relay/lua``, called by digest.

Each transition of the protocol is one file there, which lists the keys it touches on top. A few helpers that all of
them share stand in ``_prelude.lua``. Nodes may call scripts but not load them: SuperLinks load all of them at start,
and whoever may does so again when a server has lost them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class StepCall:
    """A step with its keys and arguments, to be sent together with others."""

    name: str
    keys: Sequence[str]
    args: Sequence[Any]


LOADS = 3
"""How often the steps are loaded for one call. A server may lose them again at once: by a flush, or a restart."""


def call(client: redis.Redis, name: str, keys: Sequence[str], args: Sequence[Any]) -> list[Any]:
    """Run a step; returns the list it answers."""
    loads = 0
    while True:
        try:
            reply: list[Any] = client.evalsha(digest(name), len(keys), *keys, *args)
            return reply
        except NoScriptError:
            loads = _load_for(client, name, loads)


def _load_for(client: redis.Redis, name: str, loads: int) -> int:
    """Load the steps, after so many times in vain; how often that is now."""
    if loads == LOADS:
        raise RelayUnavailable(
            f"the server has lost the step {name!r} {LOADS} times, each time just after it was loaded"
        )
    try:
        # All of them: who may load steps does so for those who may not, and may never call theirs.
        load(client)
    except NoPermissionError:
        raise RelayUnavailable(
            f"the server does not know the step {name!r} and this user may not load it; "
            "a SuperLink loads the steps when it starts: is one running (and of the same version)?"
        ) from None
    return loads + 1


def together(client: redis.Redis, *requests: StepCall | tuple[Any, ...]) -> list[Any]:
    """Steps, and commands as tuples, one after the other in one round trip; what each of them answers.

    Raises the first error among the answers. Those behind it have been carried out all the same, and all of them are
    carried out once more when the server did not know a step: each must bear that.
    """

    def send() -> list[Any]:
        with client.pipeline(transaction=False) as pipe:
            for request in requests:
                if isinstance(request, StepCall):
                    pipe.evalsha(digest(request.name), len(request.keys), *request.keys, *request.args)
                else:
                    pipe.execute_command(*request)  # type: ignore[no-untyped-call]
            return pipe.execute(raise_on_error=False)

    loads, replies = 0, send()
    while any(isinstance(reply, NoScriptError) for reply in replies):
        name = next(request.name for request in requests if isinstance(request, StepCall))
        loads, replies = _load_for(client, name, loads), send()
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
    return replies
