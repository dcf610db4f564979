"""What a run's events become on the screen, and its outcome in files."""

from __future__ import annotations

import io
import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from fedq.apps import ArrayRecord
from fedq.apps.history import Round
from fedq.cli.live import Lines, NodeLine, Picture, Silent, view_for
from fedq.cli.output import ago, jsonable, number, print_json, print_table, size, span
from fedq.cli.results import write_arrays, write_json

EVENTS = [
    ("status", {"status": "running"}),
    ("waiting-for-nodes", {"connected": 1, "wanted": 2, "text": "1 of 2 nodes"}),
    ("strategy", {"strategy": "FedAvg", "rounds": 2, "round": 0, "server": {"loss": 2.0, "accuracy": 0.1}}),
    ("reply-failed", {"round": 1, "phase": "train", "node": "b", "code": 2, "reason": "ValueError: no data"}),
    (
        "round",
        {"round": 1, "rounds": 2, "train": {"loss": 9.0}, "evaluate": None, "server": {"loss": 1.5, "accuracy": 0.5},
         "seconds": 0.25, "replies": 3, "failures": 1, "unanswered": 0},
    ),
    (
        "round",
        {"round": 2, "rounds": 2, "train": {"loss": 8.0}, "evaluate": {"score": 3.0, "num-examples": 9}, "server": None,
         "seconds": 0.5, "replies": 4, "failures": 0, "unanswered": 2},
    ),
    ("metric", {"name": "alone-accuracy-mean", "value": 0.7}),
    ("log", {"text": "hello", "level": "INFO"}),
    ("status", {"status": "finished", "reason": ""}),
]  # fmt: skip


def test_lines_tell_each_round_and_what_is_out_of_the_ordinary() -> None:
    stream = io.StringIO()
    with Lines(stream) as view:
        for kind, data in EVENTS:
            view.event(kind, data)
    assert stream.getvalue().splitlines() == [
        "running",
        "waiting for nodes: 1 of 2 nodes",
        "left out: b, round 1: ValueError: no data",
        "round 1/2  accuracy 0.5000  loss 1.5000  0.25 s  3 replies  1 failed",
        "round 2/2  score 3.0000  0.50 s  4 replies  2 unanswered",
        "alone-accuracy-mean 0.7000",
        "finished",
    ]
    assert view.history.rounds[0] == Round(0, server={"loss": 2.0, "accuracy": 0.1})
    assert view.history.app_metrics == {"alone-accuracy-mean": 0.7}
    assert [ended.accuracy for ended in view.history.trained] == [0.5, None]


def test_the_silent_view_keeps_the_history(capsys: pytest.CaptureFixture[str]) -> None:
    with Silent() as view:
        for kind, data in EVENTS:
            view.event(kind, data)
        view.say("something")
    assert len(view.history.trained) == 2
    assert capsys.readouterr() == ("", "")


def test_the_picture_shows_rounds_nodes_and_remarks() -> None:
    class Terminal(io.StringIO):
        encoding = "utf-8"  # type: ignore[assignment]

        def isatty(self) -> bool:
            return True

    stream = Terminal()
    view = view_for("digits", stream=stream, nodes=lambda: [NodeLine("clinic-a", "online", "working")])
    assert isinstance(view, Picture)
    with view:
        view.say("a remark")
        for kind, data in EVENTS[:5]:
            view.event(kind, data)
        view._node_lines = [NodeLine("clinic-a", "online", "working")]
    text = stream.getvalue()
    for word in (
        "digits",
        "1/2 rounds",
        "accuracy",
        "0.5000",
        "clinic-a",
        "working",
        "a remark",
        "ValueError: no data",
    ):
        assert word in text, word


def test_a_file_gets_lines_and_not_the_picture(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w") as stream:
        assert type(view_for("digits", stream=stream)) is Lines


def test_arrays_are_written_under_their_names_and_read_without_pickle(tmp_path: Path) -> None:
    arrays = {
        "file": np.arange(6, dtype=">f4").reshape(2, 3),
        "layer/0.weight": np.asfortranarray(np.ones((2, 2), dtype=np.float16)),
        "scalar": np.array(3, dtype=np.int64),
        "empty": np.zeros((0, 4), dtype=bool),
    }
    record = ArrayRecord({name: _array(value) for name, value in arrays.items()})
    write_arrays(record, tmp_path / "deep" / "arrays.npz")
    with np.load(tmp_path / "deep" / "arrays.npz", allow_pickle=False) as read:
        assert read.files == list(arrays)
        for name, value in arrays.items():
            assert read[name].dtype == value.dtype
            assert np.array_equal(read[name], value)


def test_bfloat16_keeps_its_bits(tmp_path: Path) -> None:
    value = np.array([1.5, -2.25], dtype=ml_dtypes.bfloat16)
    write_arrays(ArrayRecord([value]), tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as read:
        assert read["0"].tobytes() == value.tobytes()


def _array(value: np.ndarray) -> object:
    return ArrayRecord([value])["0"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    write_json({"a": 1}, path)

    class Unprintable:
        def __str__(self) -> str:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_json({"a": Unprintable()}, path)
    assert json.loads(path.read_text()) == {"a": 1}
    assert [item.name for item in tmp_path.iterdir()] == ["metrics.json"]
    assert path.stat().st_mode & 0o600 == 0o600


def test_tables_are_aligned_and_say_so_when_empty(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["NAME", "COUNT"], [["a", 1], ["long name", 200], ["two\nlines", None]], empty="none")
    assert capsys.readouterr().out.splitlines() == [
        "NAME       COUNT",
        "a              1",
        "long name    200",
        "two lines      -",
    ]
    print_table(["NAME"], [], empty="none")
    assert capsys.readouterr().out == "none\n"


def test_json_has_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": float("nan"), "b": [float("inf"), 1], "c": b"x", "d": {1}})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1], "c": "x", "d": [1]}
    assert jsonable(Path("x")) == "x"


def test_numbers_are_written_for_people() -> None:
    assert [span(s) for s in (None, 0.44, 12, 200, 10_000, 400_000)] == ["-", "0.4 s", "12 s", "3 min", "2.8 h", "5 d"]
    assert ago(None) == "-"
    assert ago(100.0, now=105.0) == "5.0 s ago"
    assert [size(n) for n in (10, 2_500, 3_000_000, 5e12)] == ["10 B", "2.5 kB", "3.0 MB", "5000.0 GB"]
    assert [number(v) for v in (0.5, 1e-9, 3, True, 123456.0)] == ["0.5000", "1e-09", "3", "True", "1.235e+05"]
