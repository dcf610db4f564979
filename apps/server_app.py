"""ServerApp: the server side of one run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from fedq.apps.context import Context
from fedq.apps.errors import AppIncomplete
from fedq.apps.grid import Grid
from fedq.apps.lifespan import Lifespan, LifespanFunction, make_lifespan, no_lifespan

log = logging.getLogger(__name__)

Main = TypeVar("Main", bound=Callable[[Grid, Context], object])


class ServerApp:
    """Holds the main function of a run.

    ::

        app = ServerApp()

        @app.main()
        def main(grid: Grid, context: Context) -> None:
            strategy = FedAvg(fraction_train=0.5)
            strategy.start(grid, initial_arrays=ArrayRecord(arrays), num_rounds=10)

    Main may run more than once: after a crash the run is started again and main continues from the last checkpoint
    that a strategy, or ``context.save()``, has written.
    """

    def __init__(self) -> None:
        self._main: Callable[[Grid, Context], object] | None = None
        self._lifespan: Lifespan = no_lifespan

    @property
    def has_main(self) -> bool:
        """Whether a main function is registered."""
        return self._main is not None

    def __call__(self, grid: Grid, context: Context) -> None:
        """Run main to its end; a `Result` which it returns is published as that of the run.

        Raises:
            AppIncomplete: no main is registered.
            Exception: whatever main raises.
        """
        if self._main is None:
            raise AppIncomplete(
                "the ServerApp has no main function; decorate one with @app.main(): def main(grid, context)",
                run_id=context.run_id,
            )
        from fedq.apps.strategy.result import Result  # which nodes can do without

        with self._lifespan(context):
            result = self._main(grid, context)
        if isinstance(result, Result):
            grid.publish(result)
        elif result is not None:
            log.warning("main returned an object of type %s, which is not kept: return a Result", type(result).__name__)

    def main(self) -> Callable[[Main], Main]:
        """Register the main function, ``(grid, context) -> None`` or a `Result`. The decorator returns it unchanged."""

        def register(function: Main) -> Main:
            self._main = function
            return function

        return register

    def lifespan(self) -> Callable[[LifespanFunction], LifespanFunction]:
        """Register a generator function, with one ``yield``, that is run around main."""

        def register(function: LifespanFunction) -> LifespanFunction:
            self._lifespan = make_lifespan(function)
            return function

        return register
