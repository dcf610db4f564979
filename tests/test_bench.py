"""The benchmarks measure what they say, and what is exact is not more than documented."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks.__main__ import PARTS, main
from benchmarks.counts import COUNTS, Counts, whole
from benchmarks.options import ISOLATIONS
from benchmarks.rows import Goal, Row, shown

ROOT = Path(__file__).parents[1]

FIELDS: dict[str, type | tuple[type, ...]] = {
    "part": str,
    "what": str,
    "isolation": str,
    "nodes": int,
    "bytes": int,
    "median": float,
    "min": float,
    "max": float,
    "floor": (float, type(None)),
    "ratio": (float, type(None)),
    "unit": str,
    "repetitions": int,
    "goal": (str, type(None)),
    "met": (bool, type(None)),
}

PER_MESSAGE = ("cpu_ms_per_message", "round_trips_per_message")


def bench(folder: Path, *words: str) -> list[dict[str, Any]]:
    """Run the benchmark as a person would, and return what it wrote."""
    path = folder / "figures.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *words, "--small", "--repetitions", "2", "--json", str(path)],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    rows: list[dict[str, Any]] = json.loads(path.read_text())
    for row in rows:
        for name, kind in FIELDS.items():
            assert isinstance(row[name], kind), f"{name} of {row}"
        assert row["min"] <= row["median"] <= row["max"]
        assert row["part"] in done.stdout
    return rows


def one(rows: list[dict[str, Any]], what: str) -> dict[str, Any]:
    """The row about ``what``."""
    found = [row for row in rows if row["what"] == what]
    assert len(found) == 1, f"{what!r} is in {len(found)} rows of {[row['what'] for row in rows]}"
    return found[0]


# -- what is exact ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("isolation", ["fork", "run", "inline"])
def test_a_message_costs_no_more_than_documented(isolation: str, tmp_path: Path) -> None:
    rows = bench(tmp_path, "counts", "--isolation", isolation)
    for what in ("commands", "round trips", "bytes"):
        row = one(rows, f"message: {what}")
        assert row["median"] <= row["floor"], f"{row['what']} for {isolation}: {json.dumps(row, indent=1)}"
    commands = one(rows, "message: commands")
    assert commands["commands.claim"] == commands["commands.commit"] == 1.0
    assert commands["commands.push"] == commands["commands.checkpoint"] == 0.5
    assert one(rows, "bare RQ's job: commands")["floor"] is None


def test_the_documented_counts_are_those_that_are_compared_with() -> None:
    text = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (fork|run|inline) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", text, flags=re.MULTILINE)
    assert {name: Counts(*map(float, numbers)) for name, *numbers in rows} == COUNTS
    assert set(COUNTS) == set(ISOLATIONS)


def test_what_comes_as_time_passes_is_not_counted_for_a_message() -> None:
    assert [whole(calls) for calls in (0.025, 0.4, 0.5, 1.0, 1.3, 2.975)] == [0.0, 0.0, 0.5, 1.0, 1.0, 3.0]


# -- each part, small ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_rounds_stand_beside_jobs_and_bytes(isolation: str, tmp_path: Path) -> None:
    rows = bench(tmp_path, "round", "--isolation", isolation, "--bytes", "1000,1000000,10000000")
    small, medium, large = (row for row in rows if row["what"] == "")
    worker = "rq.Worker" if isolation == "fork" else "rq.SimpleWorker"
    assert [row["floor_is"] for row in (small, medium, large)] == [worker, f"{worker} + redis-py", "redis-py"]
    for row in (small, medium, large):
        assert row["ratio"] > 0
        assert all(row[name] > 0 for name in PER_MESSAGE)
    # A round with two nodes: written once, read twice, written twice, read twice.
    assert 0.99 < large["wire_bytes_per_message"] * 2 / (7 * 10_000_000) < 1.2
    frozen = one(rows, "90 % frozen")
    assert frozen["unit"] == "bytes"
    assert frozen["median"] < frozen["wire_bytes_unfrozen"] / 2


@pytest.mark.slow
def test_messages_are_counted_by_the_second(tmp_path: Path) -> None:
    row = one(bench(tmp_path, "messages", "--isolation", "run"), "40 messages")
    assert row["unit"] == "messages/s"
    assert row["floor_is"] == "rq.SimpleWorker"
    assert all(row[name] > 0 for name in PER_MESSAGE)


@pytest.mark.slow
def test_memory_is_that_of_the_model_and_goes_with_the_run(tmp_path: Path) -> None:
    rows = bench(tmp_path, "memory", "--bytes", "20000000")
    for who in ("ServerApp", "work-horse", "server"):
        row = one(rows, f"{who}, peak")
        assert 0.9 < row["ratio"] < 20, row
    assert one(rows, "server, after the run")["median"] < 5e6


@pytest.mark.slow
def test_endurance_compares_the_end_with_the_beginning(tmp_path: Path) -> None:
    rows = bench(tmp_path, "endurance", "--isolation", "run", "--rounds", "40")
    row = one(rows, "last rounds")
    assert row["repetitions"] == 10
    assert row["floor_is"] == "first rounds"
    assert one(rows, "server, after the run")["unit"] == "bytes"


@pytest.mark.slow
def test_an_idle_federation_is_weighed(tmp_path: Path) -> None:
    rows = bench(tmp_path, "idle")
    # In so short a time there may be less than a tick of the clock.
    assert 0 <= one(rows, "processor")["median"] < 2
    memory = one(rows, "memory (PSS)")
    assert 1e7 < memory["median"] <= memory["rss"]
    # Server, SuperLink with four workers and housekeeping, two SuperNodes with a dispatcher and a worker each.
    assert memory["processes"] >= 10


@pytest.mark.slow
def test_many_nodes_are_listed_sampled_and_asked(tmp_path: Path) -> None:
    rows = bench(tmp_path, "nodes", "--registered", "50")
    whats = ["node ids", "FedAvg samples 25", "fedq nodes", "heartbeats, server", "round, light nodes"]
    assert [row["what"] for row in rows] == whats
    assert one(rows, "heartbeats, server")["beats_per_second"] > 0
    assert one(rows, "round, light nodes")["nodes"] == 25


@pytest.mark.slow
def test_all_train_to_the_same_accuracy_with_stragglers(tmp_path: Path) -> None:
    rows = bench(tmp_path, "async")
    for name in ("FedBuff", "FedAsync"):
        row = one(rows, f"{name}, to 80%")
        assert row["floor_is"] == "FedAvg"
        assert row["ratio"] > 0
        # An update of FedAvg is made of all three nodes, one of the others of a single reply.
        assert row["floor_replies"] == 3 * row["floor_updates"]
        assert row["replies"] == row["updates"] > row["floor_updates"]
    # It leaves nodes out, and is stopped when FedAvg of all is there.
    quickest = one(rows, "FedAvg of the first 1 replies, to 80%")
    assert quickest["ratio"] <= 1 or quickest["accuracy"] >= 0.8


@pytest.mark.peer
@pytest.mark.slow
def test_flower_does_the_same_work_beside_it(tmp_path: Path) -> None:
    rows = bench(tmp_path, "flower", "--isolation", "fork", "--repetitions", "1")
    row = one(rows, "Flower 1.42, round")
    assert row["floor_is"] == "fedq, fork"
    assert row["ratio"] > 1
    assert one(rows, "Flower 1.42, idle, memory (PSS)")["median"] > 0


@pytest.mark.peer
@pytest.mark.slow
def test_flowers_simulation_does_the_same_work_beside_it(tmp_path: Path) -> None:
    row = one(bench(tmp_path, "simulation", "--repetitions", "1"), "Flower 1.42, simulation")
    assert row["floor_is"] == "fedq, run"
    assert row["nodes"] == 10
    assert row["ratio"] > 0


# -- rows and options ------------------------------------------------------------------------------------------------


def row(samples: list[float], floors: list[float], goal: Goal | None = None) -> Row:
    return Row("round", "", "fork", 2, 1000, samples, floors, "floor", goal=goal)


def test_a_ratio_is_that_of_what_was_measured_side_by_side() -> None:
    # The machine was half as fast during the second repetition, for both.
    measured = row([1.0, 2.0, 1.0], [1.0, 2.0, 1.0])
    assert measured.ratio == 1.0
    # One floor for all is compared with the median.
    assert row([1.0, 2.0, 3.0], [4.0]).ratio == 0.5
    assert row([1.0], []).ratio is None
    assert row([1.0], [0.0]).ratio is None


def test_a_goal_is_met_missed_or_unknown() -> None:
    at_most = Goal("ratio", "<=", 1.5)
    assert row([3.0], [2.0], at_most).as_json()["met"] is True
    assert row([3.1], [2.0], at_most).as_json()["met"] is False
    assert row([3.1], [], at_most).as_json()["met"] is None
    assert row([200.0], [], Goal("median", ">=", 200.0)).as_json()["goal"] == "median >= 200"


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.01234, "s", "12.3 ms"),
        (1.5, "s", "1.5 s"),
        (50_000_000.0, "bytes", "50 MB"),
        (1234.0, "messages/s", "1,234 /s"),
        (0.05, "cores", "0.05 cores"),
        (None, "s", "–"),
    ],
)
def test_numbers_are_shown_with_a_unit_that_fits(value: float | None, unit: str, text: str) -> None:
    assert shown(value, unit) == text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["speed"], "'speed' is not one of"),
        (["--nodes", "2,two"], "is not a list of numbers such as 2,4"),
        (["--bytes", "0"], "each number must be above 0"),
        (["--isolation", "fork,thread"], "'thread' is none of fork, run, inline"),
    ],
)
def test_an_option_that_cannot_be_meant_is_refused(words: list[str], said: str) -> None:
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 2
    assert said in done.output


def test_every_part_is_in_the_docs_and_has_its_module() -> None:
    text = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    for part, module in PARTS.items():
        assert f"\n| `{part}` |" in text
        assert (ROOT / "benchmarks" / f"{module}.py").is_file()
