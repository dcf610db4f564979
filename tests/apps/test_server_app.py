"""A ServerApp runs its main with Grid and Context, inside of its lifespan."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
import pytest

from fedq.apps import ArrayRecord, ClientApp, Context, Grid, ServerApp
from fedq.apps.errors import AppError, AppIncomplete
from fedq.apps.strategy import Result
from fedq.apps.testing import Federation


def test_main_gets_the_grid_and_the_context_of_the_run() -> None:
    app = ServerApp()
    seen: list[object] = []

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        seen.extend([grid.run_id, context.run_id, context.run_config, grid.context is context])

    Federation(1).run(app, ClientApp(), config={"num-rounds": 3})
    assert seen == [1, 1, {"num-rounds": 3}, True]


def test_without_main_the_error_says_how_to_write_one() -> None:
    app = ServerApp()
    assert not app.has_main
    with pytest.raises(AppIncomplete, match=r"no main function; decorate one with @app.main\(\)"):
        Federation(1).run(app, ClientApp())


def test_the_lifespan_surrounds_main() -> None:
    app = ServerApp()
    seen: list[str] = []

    @app.lifespan()
    def lifespan(context: Context) -> Iterator[None]:
        seen.append("before")
        yield
        seen.append("after")

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        seen.append("main")

    Federation(1).run(app, ClientApp())
    assert seen == ["before", "main", "after"]


def test_a_result_that_main_returns_is_the_result_of_the_run() -> None:
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> Result:
        return Result(arrays=ArrayRecord([np.ones(2)]))

    run = Federation(1).run(app, ClientApp())
    np.testing.assert_array_equal(run.result.arrays.to_numpy_ndarrays()[0], np.ones(2))


def test_a_run_without_a_result_says_so() -> None:
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> str:
        return "done"

    run = Federation(1).run(app, ClientApp())
    with pytest.raises(AppError, match="no result"):
        _ = run.result


def test_anything_else_that_main_returns_is_dropped_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    app = ServerApp()
    app.main()(lambda grid, context: {"accuracy": 0.9})
    with caplog.at_level(logging.WARNING):
        Federation(1).run(app, ClientApp())
    assert "type dict, which is not kept" in caplog.text
