"""A History tells each round once, whoever told it, and comes back from its file as it was."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedq.apps import ArrayRecord, MetricRecord
from fedq.apps.extras import MissingExtra, require
from fedq.apps.history import History, Round
from fedq.apps.strategy import FedAvg, Result
from fedq.apps.testing import Federation, FederationRun, Interrupted
from tests.apps.federations import averaging_app, training_app

ROUND: dict[str, Any] = {
    "round": 1,
    "rounds": 2,
    "train": {"loss": 2.0, "num-examples": 8},
    "evaluate": None,
    "server": {"accuracy": 0.5, "per-class": [0.25, 0.75]},
    "seconds": 0.125,
    "replies": 3,
    "failures": 1,
    "unanswered": 0,
}


def history_of(run: FederationRun) -> History:
    history = History()
    for event in run.events:
        history.feed(event.kind, event.data)
    return history


def averaged(rounds: int, interrupted_after: tuple[int, ...] = ()) -> FederationRun:
    run = Federation(3).begin(averaging_app(FedAvg, rounds=rounds), training_app())
    for checkpoint in interrupted_after:
        with pytest.raises(Interrupted):
            run.execute(stop_after_checkpoint=checkpoint)
    return run.execute()


def test_the_events_of_a_run_and_its_result_tell_the_same_history() -> None:
    run = averaged(3)
    told, made = history_of(run), run.result.history
    assert [ended.number for ended in told.rounds] == [ended.number for ended in made.rounds] == [1, 2, 3]
    assert [ended.scalars() for ended in told.rounds] == [ended.scalars() for ended in made.rounds]
    assert history_of(run).take(run.result) == told
    assert told.total == 3


def test_a_run_that_was_interrupted_has_no_round_twice() -> None:
    told = history_of(averaged(3, interrupted_after=(1, 2)))
    whole = history_of(averaged(3))
    assert [(ended.number, ended.scalars()) for ended in told.rounds] == [
        (ended.number, ended.scalars()) for ended in whole.rounds
    ]


def test_an_event_that_comes_twice_makes_one_round() -> None:
    history = History()
    for _ in range(2):
        assert history.feed("round", ROUND) == history.last
    assert len(history) == 1


def test_metrics_have_the_name_of_who_measured_them() -> None:
    history = History()
    history.feed("strategy", {"strategy": "FedAvg", "rounds": 2, "server": {"accuracy": 0.1}})
    history.feed("round", ROUND)
    assert history.names == [
        "train/loss",
        "train/num-examples",
        "server/accuracy",
        "server/per-class.0",
        "server/per-class.1",
    ]
    assert history.series("server/accuracy") == ([0, 1], [0.1, 0.5])
    assert history.series("train/loss") == ([1], [2.0])
    assert history.series("no/such") == ([], [])
    assert [ended.number for ended in history.trained] == [1]


def test_the_steps_of_several_strategies_count_through() -> None:
    history = History()
    for rounds in (2, 3):
        history.feed("strategy", {"rounds": rounds, "server": {"loss": 9.0}})
        for number in range(1, rounds + 1):
            history.feed("round", {"round": number, "rounds": rounds, "server": {"loss": float(number)}})
    assert [(ended.strategy, ended.number, ended.step) for ended in history.rounds] == [
        *[(1, 0, 0), (1, 1, 1), (1, 2, 2)],
        *[(2, 0, 2), (2, 1, 3), (2, 2, 4), (2, 3, 5)],
    ]
    history.take(Result(evaluate_metrics_serverapp={3: MetricRecord({"loss": 7.0})}))
    assert history.rounds[-1].server == {"loss": 7.0}
    assert history.rounds[2].server == {"loss": 2.0}


def test_what_the_server_app_emits_itself_belongs_to_the_newest_round_or_the_one_it_names() -> None:
    history = History()
    history.feed("metric", {"name": "before", "value": 1})
    history.feed("round", ROUND)
    history.feed("metric", {"name": "epsilon", "value": 2.5})
    history.feed("metric", {"name": "next", "value": 3, "round": 2})
    assert [(ended.number, ended.app) for ended in history.rounds] == [
        (0, {"before": 1}),
        (1, {"epsilon": 2.5}),
        (2, {"next": 3}),
    ]
    history.feed("round", {**ROUND, "round": 2})
    assert history.rounds[2].app == {"next": 3}
    assert history.app_metrics == {"before": 1, "epsilon": 2.5, "next": 3}


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("round", {"round": "one"}),
        ("round", {}),
        ("round", {"round": True}),
        ("metric", {"value": 3}),
        ("metric", {"name": "words", "value": "high"}),
        ("log", {"text": "hello"}),
        ("strategy", {"rounds": "many", "server": "none"}),
    ],
)
def test_events_that_an_app_made_up_are_passed_over(kind: str, data: dict[str, Any]) -> None:
    history = History()
    assert history.feed(kind, data) is None
    assert len(history) == 0


def test_the_headline_is_the_servers_then_the_nodes_evaluation_then_training() -> None:
    train, evaluate, server = {"loss": 3}, {"loss": 2, "num-examples": 5}, {"loss": 1}
    assert Round(1, train, evaluate, server).headline == {"loss": 1.0}
    assert Round(1, train, evaluate).headline == {"loss": 2.0}
    assert Round(1, train, {"num-examples": 5}).headline == {"loss": 3.0}
    assert Round(1, server={"list": [1.0]}).headline == {}


def test_accuracy_and_loss_are_found_under_longer_names() -> None:
    ended = Round(1, server={"eval_acc": 0.5, "eval_loss": 2.0})
    assert (ended.accuracy, ended.loss) == (0.5, 2.0)
    assert Round(1, server={"r2": 0.5}).accuracy is None


def test_a_csv_has_a_line_for_each_round_and_a_column_for_each_metric(tmp_path: Path) -> None:
    history = History()
    history.feed("strategy", {"rounds": 2, "server": {"accuracy": 0.1}})
    history.feed("round", {**ROUND, "server": {"accuracy": None}})
    text = history.to_csv(tmp_path / "new" / "history.csv")
    assert (tmp_path / "new" / "history.csv").read_text() == text
    assert list(csv.DictReader(io.StringIO(text))) == [
        {
            "step": "0",
            "strategy": "1",
            "round": "0",
            "seconds": "",
            "replies": "",
            "failures": "",
            "unanswered": "",
            "train/loss": "",
            "train/num-examples": "",
            "server/accuracy": "0.1",
        },
        {
            "step": "1",
            "strategy": "1",
            "round": "1",
            "seconds": "0.125",
            "replies": "3",
            "failures": "1",
            "unanswered": "0",
            "train/loss": "2.0",
            "train/num-examples": "8",
            "server/accuracy": "nan",
        },
    ]


def test_an_empty_history_is_written_too() -> None:
    assert History().to_csv() == "step,strategy,round,seconds,replies,failures,unanswered\n"
    assert json.loads(History().to_json()) == {"rounds": []}
    assert History.from_json(History().to_json()) == History()


numbers = st.floats(allow_infinity=False) | st.integers(-(2**60), 2**60)
metrics = st.dictionaries(
    st.text(max_size=8), numbers | st.lists(st.floats(allow_nan=False, allow_infinity=False)), max_size=3
)
rounds_made = st.builds(
    Round,
    number=st.integers(0, 5),
    train=metrics,
    evaluate=metrics,
    server=metrics,
    app=metrics,
    seconds=st.none() | st.floats(0, 1e6),
    replies=st.none() | st.integers(0, 99),
    failures=st.none() | st.integers(0, 99),
    unanswered=st.none() | st.integers(0, 99),
    strategy=st.integers(1, 3),
    offset=st.integers(0, 9),
)


@given(st.lists(rounds_made, max_size=4))
def test_a_history_comes_back_from_its_json(rounds: list[Round]) -> None:
    history = History(rounds)
    # NaN equals nothing, so the texts are compared; floats keep their bits in them.
    assert History.from_json(history.to_json()).to_json() == history.to_json()
    assert History.from_json(history.to_json()).to_csv() == history.to_csv()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rounds": [1]}', '{"rounds": [{}]}', b"\xff"])
def test_another_file_is_no_history(text: str | bytes) -> None:
    with pytest.raises(ValueError, match="no history"):
        History.from_json(text)


def test_a_number_that_json_does_not_have_is_nan_afterwards() -> None:
    history = History().take(Result(ArrayRecord(), {1: MetricRecord({"loss": math.inf})}))
    (ended,) = History.from_json(history.to_json()).rounds
    assert math.isnan(ended.train["loss"])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "metrics",
    [{"accuracy": 0.5, "loss": 1.0}, {"loss": -1.0}, {"r2": 0.1}, {"loss": math.nan}, {}],
    ids=["both", "loss below zero", "another metric", "nan", "none"],
)
def test_a_plot_is_drawn_of_whatever_there_is(tmp_path: Path, metrics: dict[str, float]) -> None:
    history = History([Round(number, server=metrics, train={"loss": 2.0}) for number in range(3)])
    history.plot(tmp_path / "plot.png", title="t", baselines={"accuracy": 0.4})
    assert (tmp_path / "plot.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_plot_has_a_panel_for_each_metric_and_a_line_for_each_part() -> None:
    history = History(
        [Round(n, train={"loss": 2.0 / (n + 1)}, server={"loss": 1.0, "accuracy": n / 3}) for n in range(3)]
    )
    figure = history.plot(baselines={"accuracy": 0.4})
    panels = {axes.get_ylabel(): [line.get_label() for line in axes.lines] for axes in figure.axes}
    assert panels == {"accuracy": ["server", "for comparison"], "loss": ["server", "nodes, training"]}
    (axes,) = history.plot(metrics=["loss"], baselines={"loss": (0.5, "alone")}).axes
    assert (axes.get_ylabel(), axes.lines[-1].get_label()) == ("loss", "alone")
    assert list(figure.axes[1].lines[1].get_ydata()) == [2.0, 1.0, 2.0 / 3]


def test_a_package_that_is_missing_is_named_with_its_extra() -> None:
    with pytest.raises(MissingExtra, match=r"plots need no_such.*pip install 'fedq\[plot\]'"):
        require("no_such_package", "plot", "plots need no_such_package")
    assert require("json.decoder", "plot", "").JSONDecodeError
