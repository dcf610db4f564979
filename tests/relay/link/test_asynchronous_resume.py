"""An asynchronous strategy on the relay: killed anywhere it goes on, sends nothing twice and loses nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedq.apps import ArrayRecord, ServerApp
from fedq.apps.strategy import FedAsync, FedBuff
from tests.relay.link.conftest import Setting
from tests.relay.link.killing import Ended, ended
from tests.relay.link.test_grid_resume import answer

MAKERS: dict[str, Any] = {
    "FedBuff": lambda: FedBuff(3, evaluate_every=2, seed=1),
    "FedBuff-many-pushes": lambda: FedBuff(12, concurrency=1, fraction_evaluate=0.0, seed=1),
    "FedAsync": lambda: FedAsync(0.5, evaluate_every=2, seed=1),
}


def server_app(name: str) -> ServerApp:
    app = ServerApp()

    @app.main()
    def main(grid: Any, context: Any) -> Any:
        return MAKERS[name]().start(grid, ArrayRecord([np.zeros(3000), np.ones(3)]), num_rounds=2)

    return app


def check(run: Ended, buffer_size: int) -> None:
    """Each update had as many replies as a buffer takes, and none was lost or counted twice."""
    assert all(np.isfinite(np.frombuffer(array)).all() for array in run.arrays)
    assert [told["replies"] for told in run.rounds if told["evaluate"] is None] == [buffer_size] * 2
    assert all(told["failures"] == 0 for told in run.rounds)


@pytest.mark.parametrize("every", [11, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", MAKERS)
def test_killed_after_any_call_it_counts_each_reply_once(setting: Setting, name: str, every: int) -> None:
    nodes = [setting.node("a", answer), setting.node("bb", answer)]
    app, size = server_app(name), MAKERS[name]().buffer_size
    whole = ended(setting, app)
    check(whole, size)
    for after in range(1, whole.calls, every):
        check(ended(setting, app, after), size)
    for node in nodes:
        assert len(node.seen) == len(set(node.seen)), "a message was worked on twice"
