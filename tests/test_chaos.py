"""Whatever is killed, a run ends with the bits of an undisturbed one, and nothing is lost, done twice or left behind.

A fixed set of seeds for each mode and isolation, and one fresh seed, which stands at the top of what pytest prints and
can be given as $CHAOS_SEED. ``scripts/chaos`` runs the same for as long as one likes.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

import pytest

from tests.chaos.driver import Plan, chaos
from tests.chaos.faults import KINDS

FRESH = int(os.environ["CHAOS_SEED"])
PLANS = [
    Plan(
        seed=1, mode="spaced", isolation="fork", rounds=30, nodes=2, faults=("horse", "worker", "node", "redis", "cut")
    ),
    Plan(seed=2, mode="storm", isolation="fork", rounds=20, interval=0.5, nodes=3),
    Plan(seed=3, mode="storm", isolation="run", rounds=20, interval=0.5, nodes=2),
    Plan(seed=4, mode="storm", isolation="inline", rounds=20, interval=0.5, nodes=2),
    Plan(seed=FRESH, mode="storm", isolation="fork", rounds=20, interval=0.5, nodes=2),
]


def name(plan: Plan) -> str:
    return f"{plan.mode}-{plan.isolation}-{'fresh' if plan.seed == FRESH else plan.seed}"


@pytest.mark.chaos
@pytest.mark.parametrize("plan", PLANS, ids=name)
def test_a_run_ends_with_the_same_bits_whatever_is_killed(plan: Plan) -> None:
    print(f"scripts/chaos --seed {plan.seed} --mode {plan.mode} --isolation {plan.isolation} --rounds {plan.rounds}")
    said: list[str] = []
    with tempfile.TemporaryDirectory(prefix="fedq-chaos-") as folder:
        report = chaos(plan, Path(folder), said.append)
        log = (Path(folder) / "services.log").read_text() if report.wrong else ""
    assert not report.wrong, "\n".join([*said, report.table(), log])
    assert report.faults.total() >= 5, report.table()


def test_a_double_commit_a_lost_message_and_a_second_push_are_told_apart(tmp_path: Path) -> None:
    """What the judge reads from the server's file."""
    from tests.chaos.audit import read

    def command(*words: str) -> str:
        return f"*{len(words)}\r\n" + "".join(f"${len(w)}\r\n{w}\r\n" for w in words)

    node = "fedq:{0}:node:a:"
    (tmp_path / "appendonly.aof.1.incr.aof").write_bytes(
        "".join(
            [
                *(command("XADD", f"{node}inbox", "1-1", "kind", "message", "id", m) for m in ("one", "two", "two")),
                command("HSET", f"{node}claims", "one", "1|w1|99|host"),
                command("HSET", f"{node}claims", "one", "1||0|"),
                command("HSET", f"{node}claims", "one", "2|w2|99|host"),
                *(command("HSET", f"{node}out:one", "token", t) for t in ("w1", "w2")),
                "*3\r\n$4\r\nHSE",
            ]
        ).encode()
    )
    found = read(tmp_path)
    assert found.messages == 2
    assert found.lost == ["two"]
    assert sorted(found.duplicated) == ["one", "two"]
    assert found.redeliveries == 1


def test_every_kind_of_fault_stands_in_the_table_of_the_guarantees() -> None:
    text = (Path(__file__).parents[1] / "docs" / "guarantees.md").read_text(encoding="utf-8")
    assert [kind for kind in KINDS if not re.search(rf"\| `{kind}` \|", text)] == []
