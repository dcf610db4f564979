"""An asynchronous strategy on the relay: killed anywhere it goes on, sends nothing twice and loses nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedq.apps import ArrayRecord, ServerApp
from fedq.apps.strategy import FedAsync, FedBuff
from fedq.relay import cleanup, runs
from tests.relay.link.conftest import Setting
from tests.relay.link.test_grid_resume import Killed, answer

MAKERS: dict[str, Any] = {
    "FedBuff": lambda: FedBuff(3, evaluate_every=2, seed=1),
    "FedBuff-many-pushes": lambda: FedBuff(12, concurrency=1, fraction_evaluate=0.0, seed=1),
    "FedAsync": lambda: FedAsync(0.5, evaluate_every=2, seed=1),
}


def finished(setting: Setting, name: str, after: int | None) -> int:
    """Run it, killed once after so many calls to the server; how many calls it made."""
    calls, grid = 0, setting.grid()
    app = ServerApp()

    @app.main()
    def main(grid: Any, context: Any) -> Any:
        return MAKERS[name]().start(grid, ArrayRecord([np.zeros(3000), np.ones(3)]), num_rounds=2)

    step = grid.relay.call

    def call(*args: Any) -> list[Any]:
        nonlocal calls
        reply = step(*args)
        calls += 1
        if calls == after:
            raise Killed
        return reply

    grid.relay.call = call  # type: ignore[method-assign]
    try:
        app(grid, grid.context)
    except Killed:
        grid = setting.interrupt(grid)
        app(grid, grid.context)
    assert grid.result is not None
    assert all(np.isfinite(array).all() for array in grid.result.arrays.to_numpy_ndarrays())
    told = [event.data for event in setting.told(grid, "round")]
    size = MAKERS[name]().buffer_size
    assert [data["replies"] for data in told if data["evaluate"] is None] == [size, size]
    assert all(data["failures"] == 0 for data in told)
    assert not setting.told(grid, "reply-failed")
    outs = setting.relay.redis.keys(f"{setting.relay.keys.base}*out:*")
    assert not outs, "each reply was folded or cancelled, and freed"
    runs.finish(setting.relay, grid.run_id, grid.token, "finished")
    cleanup.clean_run(setting.relay, grid.run_id)
    return calls


@pytest.mark.parametrize("every", [11, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", MAKERS)
def test_killed_after_any_call_it_counts_each_reply_once(setting: Setting, name: str, every: int) -> None:
    nodes = [setting.node("a", answer), setting.node("bb", answer)]
    calls = finished(setting, name, None)
    for after in range(1, calls, every):
        finished(setting, name, after)
    for node in nodes:
        assert len(node.seen) == len(set(node.seen)), "a message was worked on twice"
