"""Flower's strategies, watched while they run: rounds become events of the run, and the Result that of the run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from fedq.apps.flower.installed import names
from fedq.apps.flower.records import Converter
from fedq.apps.grid import JSON, Grid
from fedq.apps.metricrecord import MetricRecord
from fedq.apps.strategy.result import Result

PARTS = ("train_metrics_clientapp", "evaluate_metrics_clientapp", "evaluate_metrics_serverapp")


class Watched:
    """While inside, ``Strategy.start`` of Flower tells our Grid of rounds and of the result. The class is put back
    afterwards. A strategy with a ``start`` of its own is not watched."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def __enter__(self) -> Self:
        self._kind = names("flwr.serverapp.strategy").Strategy
        self._start = start = self._kind.start
        grid = self._grid

        def watched(strategy: Any, *args: Any, **kwargs: Any) -> Any:
            with _Rounds(strategy, grid) as rounds:
                if kwargs.get("evaluate_fn") is not None:
                    kwargs["evaluate_fn"] = rounds.evaluating(kwargs["evaluate_fn"])
                rounds.begin(kwargs.get("num_rounds", args[2] if len(args) > 2 else 3))
                result = start(strategy, *args, **kwargs)
            grid.publish(result_of(result))
            return result

        self._kind.start = watched
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kind.start = self._start


class _Rounds:
    """Watches one ``start``. An event ``round`` is emitted when the next round begins, and at the end."""

    def __init__(self, strategy: Any, grid: Grid) -> None:
        self._strategy = strategy
        self._grid = grid
        self._rounds = 0
        self._open: dict[str, Any] | None = None
        self._server: dict[int, Any] = {}
        self._since = time.monotonic()

    def begin(self, rounds: Any) -> None:
        self._rounds = int(rounds)
        data: dict[str, JSON] = {"strategy": type(self._strategy).__name__, "rounds": self._rounds, "server": None}
        self._grid.emit("strategy", data)

    def __enter__(self) -> Self:
        strategy = self._strategy
        # On the object: classes that override these methods are found as well, and the class stays as it is.
        strategy.configure_train = self._beginning(self._asking(strategy.configure_train))
        strategy.configure_evaluate = self._asking(strategy.configure_evaluate)
        strategy.aggregate_train = self._aggregating("train", strategy.aggregate_train)
        strategy.aggregate_evaluate = self._aggregating("evaluate", strategy.aggregate_evaluate)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in ("configure_train", "configure_evaluate", "aggregate_train", "aggregate_evaluate"):
            del self._strategy.__dict__[name]
        if error is None:
            self._close()

    def evaluating(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``evaluate_fn``, watched."""

        def evaluate(server_round: int, arrays: Any) -> Any:
            found = function(server_round, arrays)
            self._server[int(server_round)] = found
            return found

        return evaluate

    def _beginning(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def configure(server_round: int, *args: Any, **kwargs: Any) -> Any:
            self._close()
            self._open = {"round": int(server_round), "asked": 0, "replies": 0, "failures": 0}
            self._since = time.monotonic()
            return method(server_round, *args, **kwargs)

        return configure

    def _asking(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def configure(server_round: int, *args: Any, **kwargs: Any) -> Any:
            messages = list(method(server_round, *args, **kwargs))
            if self._open is not None:
                self._open["asked"] += len(messages)
            return messages

        return configure

    def _aggregating(self, part: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def aggregate(server_round: int, replies: Any, *args: Any, **kwargs: Any) -> Any:
            replies = list(replies)
            found = method(server_round, replies, *args, **kwargs)
            if self._open is not None:
                failed = sum(reply.has_error() for reply in replies)
                self._open["replies"] += len(replies) - failed
                self._open["failures"] += failed
                self._open[part] = plain(found[1] if part == "train" else found)
            return found

        return aggregate

    def _close(self) -> None:
        if self._open is None:
            return
        told, self._open = self._open, None
        self._grid.emit(
            "round",
            {
                "round": told["round"],
                "rounds": self._rounds,
                "train": told.get("train"),
                "evaluate": told.get("evaluate"),
                "server": plain(self._server.get(told["round"])),
                "seconds": round(time.monotonic() - self._since, 6),
                "replies": told["replies"],
                "failures": told["failures"],
                "unanswered": max(0, told["asked"] - told["replies"] - told["failures"]),
            },
        )


def plain(metrics: Mapping[str, Any] | None) -> dict[str, JSON] | None:
    """Metrics as events hold them; what is no finite number becomes None."""
    if metrics is None:
        return None
    return {
        str(name): value if not isinstance(value, float) or math.isfinite(value) else None
        for name, value in metrics.items()
    }


def result_of(result: Any) -> Result:
    """A Result of ours with what Flower's holds."""
    made = Result()
    app = names("flwr.app")
    made.arrays = Converter().from_flower(app.RecordDict({"arrays": result.arrays})).array_records["arrays"]
    for part in PARTS:
        history = getattr(made, part)
        for server_round, metrics in getattr(result, part).items():
            history[int(server_round)] = MetricRecord(dict(metrics))
    return made
