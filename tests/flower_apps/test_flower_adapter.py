"""What the adapter to Flower promises: numbers of nodes, conversion without copies, a verdict for each of its names."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedq.apps import Error, ErrorCode
from fedq.apps.errors import AppError
from fedq.apps.flower import NodeIds, is_flower, node_number, records
from fedq.apps.flower.watching import _Rounds
from fedq.relay import bundles
from fedq.relay.project import read_project
from tests.support.documents import ROOT
from tests.support.flower import fedq_on_path, flower_python

HERE = Path(__file__).parent


def in_flower(folder: Path, *words: str) -> None:
    done = subprocess.run(
        [flower_python(), *words],
        env={**os.environ, "PYTHONPATH": str(fedq_on_path(folder / "path")), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_node_has_the_same_number_for_ever() -> None:
    assert node_number("site-a") == 4631833456424735642
    assert NodeIds().numbers(["site-a", "site-b"]) == [node_number("site-a"), node_number("site-b")]


def test_a_number_leads_back_to_the_node() -> None:
    ids = NodeIds()
    assert ids.name(ids.number("site-a")) == "site-a"
    assert NodeIds(ids.known).name(node_number("site-a")) == "site-a"
    assert ids.name(17) is None


def test_two_nodes_with_one_number_are_refused() -> None:
    ids = NodeIds({"other": node_number("site-a")})
    with pytest.raises(AppError, match="'other' and 'site-a' have the same number"):
        ids.number("site-a")


def test_nothing_else_is_taken_for_an_app_of_flower() -> None:
    assert not is_flower(object())


def test_a_project_of_flower_is_read_from_its_own_table() -> None:
    project = read_project(HERE / "numpy")
    assert (project.server, project.client) == ("flower_numpy.server_app:app", "flower_numpy.client_app:app")
    assert project.config["lr"] == 0.1


CODES = {
    ErrorCode.TIME_LIMIT: 8,
    ErrorCode.MAX_DELIVERIES: 8,
    ErrorCode.APP_NOT_TRUSTED: 1,
    ErrorCode.UNKNOWN_ACTION: 2,
    ErrorCode.INVALID_REPLY: 2,
    ErrorCode.MESSAGE_EXPIRED: 3,
    ErrorCode.UNDECODABLE_PAYLOAD: 3,
    ErrorCode.CANCELLED: 4,
    ErrorCode.INCONSISTENT_REPLY: 0,
}
"""Of errors that Flower does not know those of its codes that come nearest."""


def test_every_error_has_one_of_flowers_codes_and_says_which_of_ours_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, str]] = []
    made = SimpleNamespace(Error=lambda code, reason: told.append((code, reason)))
    monkeypatch.setattr(records, "names", lambda module: made)
    for code in (*ErrorCode, 1234):
        records.error_to_flower(Error(code, "why"))
    assert told == [
        *[(CODES[code], f"{code.name}: why") if code in CODES else (int(code), "why") for code in ErrorCode],
        (1234, "why"),
    ]
    assert all(0 <= code <= 8 for code, _ in told[:-1])


class Asking:
    """What is watched of a strategy of Flower: five messages in training, three in evaluation."""

    def configure_train(self, server_round: int) -> list[str]:
        return ["message"] * 5

    def aggregate_train(self, server_round: int, replies: Any) -> tuple[None, dict[str, float]]:
        return None, {"loss": 0.5}

    def configure_evaluate(self, server_round: int) -> Any:
        return iter(["message"] * 3)

    def aggregate_evaluate(self, server_round: int, replies: Any) -> None:
        return None


def test_a_round_tells_what_was_used_what_failed_and_what_did_not_come() -> None:
    told: list[dict[str, Any]] = []
    grid: Any = SimpleNamespace(emit=lambda kind, data: told.append({"kind": kind, **data}))
    good, bad = SimpleNamespace(has_error=lambda: False), SimpleNamespace(has_error=lambda: True)
    strategy: Any = Asking()
    with _Rounds(strategy, grid) as rounds:
        rounds.begin(2)
        for server_round in (1, 2):
            assert len(list(strategy.configure_train(server_round))) == 5
            strategy.aggregate_train(server_round, [good, good, bad] if server_round == 1 else [good] * 5)
            assert len(list(strategy.configure_evaluate(server_round))) == 3
            strategy.aggregate_evaluate(server_round, iter([good] * 3))
    counts = [(event["replies"], event["failures"], event["unanswered"]) for event in told if event["kind"] == "round"]
    assert counts == [(5, 1, 2), (8, 0, 0)]
    assert vars(strategy) == {}, "the object was not put back"


def test_every_name_with_a_verdict_stands_in_the_table() -> None:
    verdicts = tomllib.loads((ROOT / "docs" / "flower-names.toml").read_text())
    rows = re.findall(r"^\| `([\w.]+)` \| `(\w+)` \| ([\w ]+) \|", (ROOT / "docs" / "flower.md").read_text(), re.M)
    assert sorted((module, name) for module, name, _ in rows) == sorted(
        (module, name) for module, names in verdicts.items() for name in names
    )
    for module, names in verdicts.items():
        for name, (verdict, why) in names.items():
            assert verdict in ("same", "better", "adapter", "not"), f"{module}.{name}"
            assert why or verdict == "same", f"{module}.{name}: {verdict} says how, or why"


@pytest.mark.skipif(find_spec("flwr") is not None, reason="flwr is installed here")
def test_where_flwr_is_not_installed_the_error_names_the_extra(tmp_path: Path) -> None:
    bundle = bundles.pack_project(read_project(HERE / "numpy"))
    before = list(sys.path)
    try:
        with pytest.raises(bundles.LoadError, match=r"pip install 'fedq\[flower\]'"):
            bundles.load_client_app(bundle.kind, bundle.data, bundle.digest, tmp_path)
    finally:
        sys.path[:] = before
        for name in [name for name in sys.modules if name.startswith("flower_numpy")]:
            del sys.modules[name]


@pytest.mark.peer
def test_every_public_name_of_flower_has_its_verdict(tmp_path: Path) -> None:
    in_flower(tmp_path, str(ROOT / "scripts" / "flower-names"), "--check")


@pytest.mark.peer
def test_arrays_are_copied_once_at_most(tmp_path: Path) -> None:
    in_flower(tmp_path, str(HERE / "conversion.py"))
