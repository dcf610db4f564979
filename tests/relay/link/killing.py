"""A ServerApp whose process is lost after a call to the server of the test's choice, and what it then ends with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from fedq.apps import ServerApp
from fedq.relay import cleanup, runs
from fedq.relay.connection import Relay
from tests.relay.link.conftest import Setting


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it."""


@dataclass
class Calls:
    """How many calls to the server there were."""

    number: int = 0


@contextmanager
def counted(relay: Relay, *, kill_after: int | None = None) -> Iterator[Calls]:
    """Count the calls to the server in the block. After the one of that number, once, `Killed` is raised."""
    calls = Calls()

    def counting(step: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
        def call(*args: Any) -> list[Any]:
            reply = step(*args)
            calls.number += 1
            if calls.number == kill_after:
                raise Killed
            return reply

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relay, "call", counting(relay.call))
        patch.setattr(relay, "together", counting(relay.together))
        yield calls


@dataclass(frozen=True)
class Ended:
    """A run that came to its end: the bits of its arrays, what it told of its rounds, calls to the server."""

    arrays: list[bytes]
    rounds: list[dict[str, Any]]
    calls: int

    def same(self, other: Ended) -> bool:
        """Whether another ended with the same: the time that rounds took does not count."""
        return self.arrays == other.arrays and _timeless(self.rounds) == _timeless(other.rounds)


def ended(setting: Setting, app: ServerApp, kill_after: int | None = None) -> Ended:
    """Let an app do a run, and lose it once after so many calls. Nothing of the run is left behind."""
    grid = setting.grid()
    with counted(grid.relay, kill_after=kill_after) as calls:
        try:
            app(grid, grid.context)
        except Killed:
            grid = setting.interrupt(grid)
            app(grid, grid.context)
    assert grid.result is not None
    assert not setting.told(grid, "reply-failed")
    outs = setting.relay.redis.keys(f"{setting.relay.keys.base}*out:*")
    assert not outs, "each reply was folded or cancelled, and freed"
    rounds = [dict(event.data) for event in setting.told(grid, "round")]
    arrays = [array.tobytes() for array in grid.result.arrays.to_numpy_ndarrays()]
    runs.finish(setting.relay, grid.run_id, grid.token, "finished")
    cleanup.clean_run(setting.relay, grid.run_id)
    return Ended(arrays, rounds, calls.number)


def _timeless(rounds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in data.items() if name != "seconds"} for data in rounds]
