"""A Flower ServerApp as one of ours."""

from __future__ import annotations

from typing import Any

from fedq.apps.context import Context
from fedq.apps.flower.grid import make_grid
from fedq.apps.flower.installed import SERVER, flwr, identify, logs_go_to_the_run, names
from fedq.apps.flower.memory import Memory
from fedq.apps.flower.node_ids import NodeIds
from fedq.apps.flower.records import Converter
from fedq.apps.flower.watching import Watched
from fedq.apps.grid import Grid
from fedq.apps.recorddict import RecordDict
from fedq.apps.server_app import ServerApp


class FlowerServerApp(ServerApp):
    """Runs a Flower ServerApp on our Grid.

    Before its main, a checkpoint is written with the states of the random number generators and the numbers of the
    nodes: should the ServerApp be interrupted, main runs again from its beginning and draws the same numbers, so that
    it asks for what was answered already. The `Result` of a strategy is published as that of the run.
    """

    def __init__(self, app: Any) -> None:
        super().__init__()
        self.app = app

    @property
    def has_main(self) -> bool:
        """True: an app of Flower without a main runs its strategy."""
        return True

    def __call__(self, grid: Grid, context: Context) -> None:
        flwr()
        identify(context.run_id, SERVER)
        memory = Memory(context.state)
        ids = NodeIds(memory.nodes)
        if memory.is_new:
            ids.numbers(grid.get_node_ids())
            memory.keep(ids.known)
            if context._saver is not None:
                context.save(folded=())
        memory.restore()
        own = RecordDict({name: record for name, record in context.state.items() if name != memory.NAME})
        theirs = names("flwr.app").Context(
            run_id=context.run_id,
            node_id=SERVER,
            node_config=dict(context.node_config),
            state=Converter().to_flower(own),
            run_config=dict(context.run_config),
        )
        with logs_go_to_the_run(), Watched(grid):
            self.app(grid=make_grid(grid, ids), context=theirs)


def wrap_server_app(app: Any) -> FlowerServerApp:
    """A ServerApp that runs this one of Flower's.

    Raises:
        MissingExtra: flwr is not installed.
        TypeError: ``app`` is no ServerApp of Flower.
    """
    if not isinstance(app, names("flwr.serverapp").ServerApp):
        raise TypeError(f"expected a ServerApp of flwr, not {type(app).__name__}")
    return FlowerServerApp(app)
