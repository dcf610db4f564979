"""Trackers are told each point of a run once, in the order of rounds, and what they write is read back."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import fedq.apps.tracking
from fedq.apps.extras import MissingExtra
from fedq.apps.strategy import FedAvg
from fedq.apps.testing import Event, Federation, Interrupted
from fedq.apps.tracking import MLflow, TensorBoard, TrackedRun, Tracking, WandB, track, tracker_named
from tests.apps.federations import averaging_app, training_app

RUN = TrackedRun("run-7-20260102-030405-006", "first try", {"num-rounds": 2, "rate": 0.5, "site": "a|b"})


@dataclass
class Noted:
    """A tracker that keeps what it is told."""

    told: list[Any] = field(default_factory=list)

    def begin(self, run: TrackedRun) -> None:
        self.told.append(run)

    def log(self, step: int, metrics: Mapping[str, float], time: float) -> None:
        self.told.append((step, dict(metrics)))

    def end(self, status: str) -> None:
        self.told.append(status)


class Failing(Noted):
    def log(self, step: int, metrics: Mapping[str, float], time: float) -> None:
        raise OSError("the disk is full")


def status(word: str, time: float = 0.0) -> Event:
    return Event("status", {"status": word}, time)


def ended(number: int, loss: float | None, time: float = 0.0) -> Event:
    return Event("round", {"round": number, "rounds": 2, "train": {"loss": loss}, "seconds": 0.5}, time)


EVENTS = [
    status("running"),
    Event("strategy", {"strategy": "FedAvg", "rounds": 2, "server": {"loss": 4.0}}, 100.0),
    ended(1, 2.0, 101.0),
    Event("log", {"text": "hello"}, 101.0),
    ended(2, 1.0, 102.0),
    Event("metric", {"name": "epsilon", "value": 3.0}, 103.0),
    status("finished"),
]


def test_the_package_exports_these_names() -> None:
    assert fedq.apps.tracking.__all__ == [
        *("TRACKERS", "HappenedEvent", "MLflow", "TensorBoard", "TrackedRun", "Tracker", "Tracking"),
        *("WandB", "track", "tracker_named"),
    ]


def test_a_tracker_hears_of_the_run_of_each_round_and_of_the_end() -> None:
    noted = Noted()
    history = track(EVENTS, RUN, noted)
    assert noted.told == [
        RUN,
        (0, {"server/loss": 4.0}),
        (1, {"train/loss": 2.0, "round/seconds": 0.5}),
        (2, {"train/loss": 1.0, "round/seconds": 0.5}),
        (2, {"app/epsilon": 3.0}),
        "finished",
    ]
    assert [told.number for told in history.rounds] == [0, 1, 2]


def test_events_that_come_twice_make_no_double_points() -> None:
    noted, again = Noted(), [event for event in EVENTS for _ in range(2) if event.kind != "strategy"]
    track(again, RUN, noted)
    assert [told[0] for told in noted.told[1:-1]] == [1, 2, 2]
    noted = Noted()
    track([ended(1, None), ended(1, None)], RUN, noted)
    (point,) = noted.told[1:-1]
    assert math.isnan(point[1]["train/loss"])


@pytest.mark.parametrize("behind", [1, 2])
def test_the_points_of_a_run_that_was_interrupted_are_those_of_one_that_was_not(behind: int) -> None:
    def points(*, interrupted: bool) -> list[Any]:
        run = Federation(3).begin(averaging_app(FedAvg, rounds=3), training_app())
        if interrupted:
            with pytest.raises(Interrupted):
                run.execute(stop_after_checkpoint=behind)
        noted = Noted()
        track(run.execute().events, RUN, noted)
        return [(step, {**metrics, "round/seconds": 0}) for step, metrics in noted.told[1:-1]]

    assert points(interrupted=True) == points(interrupted=False)
    assert [step for step, _ in points(interrupted=True)] == [1, 2, 3]


def test_a_run_that_is_not_followed_to_its_end_is_left_as_running() -> None:
    noted = Noted()

    def events() -> Iterator[Event]:
        yield from EVENTS[:3]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        track(events(), RUN, noted)
    assert noted.told[-1] == "running"


def test_a_run_that_failed_and_was_resumed_ends_once() -> None:
    noted = Noted()
    track([ended(1, 2.0), status("failed"), status("pending"), ended(2, 1.0), status("finished")], RUN, noted)
    assert [told for told in noted.told if isinstance(told, str)] == ["finished"]


def test_a_tracker_that_fails_is_left_out_and_the_others_go_on() -> None:
    noted, failing, said = Noted(), Failing(), list[str]()
    with Tracking(RUN, [failing, noted], on_failure=said.append) as tracking:
        for event in EVENTS:
            tracking.event(event)
    assert said == ["the tracker Failing is left out from here on: OSError: the disk is full"]
    assert failing.told == [RUN]
    assert noted.told[-1] == "finished"


def test_a_tracker_that_cannot_begin_is_an_error_and_those_that_had_begun_are_ended() -> None:
    class Refusing(Noted):
        def begin(self, run: TrackedRun) -> None:
            raise PermissionError("no key")

    noted = Noted()
    with pytest.raises(PermissionError), Tracking(RUN, [noted, Refusing()]):
        raise AssertionError("not reached")
    assert noted.told == [RUN, "running"]


# -- by name -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["", "tensorboard", "tensorboard:", "csv:here", "TensorBoard:x"])
def test_a_word_that_names_no_tracker_is_an_error_that_lists_them(word: str) -> None:
    with pytest.raises(ValueError, match=r"is no tracker; there are tensorboard:DIR, mlflow"):
        tracker_named(word)


def test_a_place_may_hold_colons(tmp_path: Path) -> None:
    tracker = tracker_named(f"tensorboard:{tmp_path}/a:b")
    assert isinstance(tracker, TensorBoard)
    assert tracker.folder == tmp_path / "a:b"


@pytest.mark.parametrize(("make", "extra"), [(MLflow, "mlflow"), (WandB, "wandb")])
def test_a_package_that_is_not_installed_is_named_with_its_extra(make: Any, extra: str) -> None:
    from importlib.util import find_spec

    if find_spec(extra) is not None:
        pytest.skip(f"{extra} is installed here")
    with pytest.raises(MissingExtra, match=rf"pip install 'fedq\[{extra}\]'"):
        make()


# -- Weights & Biases, whose service cannot be asked here: what it is told -----------------------------------------


class FakeWandbRun:
    def __init__(self, step: int) -> None:
        self.step, self.resumed = step, step > 0
        self.logged: list[tuple[int, float | None]] = []
        self.summary: dict[str, Any] = {}
        self.exit_code: int | None = None

    def log(self, data: Mapping[str, float], *, step: int) -> None:
        self.logged.append((step, data.get("train/loss")))

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


@pytest.mark.parametrize(("there", "missing"), [(0, [0, 1, 2, 2]), (2, [2, 2])], ids=["new", "continued"])
def test_a_run_at_wandb_is_found_by_its_key_and_gets_the_rounds_that_are_missing(
    monkeypatch: pytest.MonkeyPatch, there: int, missing: list[int]
) -> None:
    asked: dict[str, Any] = {}
    theirs = FakeWandbRun(there)

    def init(**options: Any) -> FakeWandbRun:
        asked.update(options)
        return theirs

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    track(EVENTS, RUN, tracker_named("wandb:team/project"))
    assert (asked["entity"], asked["project"]) == ("team", "project")
    assert (asked["id"], asked["resume"], asked["config"]) == (RUN.key, "allow", RUN.config)
    assert [step for step, _ in theirs.logged] == missing
    assert (theirs.summary, theirs.exit_code) == ({"status": "finished"}, 0)


# -- TensorBoard, read back by TensorBoard itself ------------------------------------------------------------------


def read(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return accumulator


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    read_back = read(folder)
    tags: Sequence[str] = read_back.Tags()["scalars"]
    return {tag: [(point.step, point.value) for point in read_back.Scalars(tag)] for tag in tags}


POINTS = {
    "server/loss": [(0, 4.0)],
    "train/loss": [(1, 2.0), (2, 1.0)],
    "round/seconds": [(1, 0.5), (2, 0.5)],
    "app/epsilon": [(2, 3.0)],
}


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Path]:
    track(EVENTS, RUN, TensorBoard(tmp_path))
    return tmp_path / RUN.key


def test_tensorboard_reads_the_points_with_their_times(board: Path) -> None:
    assert scalars(board) == POINTS
    assert [point.wall_time for point in read(board).Scalars("train/loss")] == [101.0, 102.0]


def test_tensorboard_shows_the_config(board: Path) -> None:
    read_back = read(board)
    text = read_back.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| rate | 0.5 |" in text


def test_tensorboard_shows_a_run_that_is_tracked_again_once(board: Path) -> None:
    # The first that followed was interrupted behind round 1; somebody follows again.
    track(EVENTS[:3], RUN, TensorBoard(board.parent))
    track(EVENTS, RUN, TensorBoard(board.parent))
    assert len([path for path in board.iterdir() if "tfevents" in path.name]) == 3
    assert scalars(board) == POINTS


def test_tensorboard_keeps_runs_apart(board: Path) -> None:
    track(EVENTS, TrackedRun("run-8-other"), TensorBoard(board.parent))
    assert scalars(board) == scalars(board.parent / "run-8-other") == POINTS


def test_tensorboard_takes_nan(tmp_path: Path) -> None:
    track([ended(1, None)], RUN, TensorBoard(tmp_path))
    ((step, value),) = scalars(tmp_path / RUN.key)["train/loss"]
    assert step == 1
    assert math.isnan(value)
