"""The command line answers quickly, knows its commands, and tells wrong usage from other trouble."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from fedq.cli.group import COMMANDS, fedq
from fedq.cli.options import duration
from tests.cli.conftest import Call

HEAVY = ("numpy", "redis", "rq", "rich", "msgspec", "cloudpickle")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_can_be_loaded_and_explains_itself(name: str, call: Call) -> None:
    command = getattr(importlib.import_module(f"fedq.cli.{COMMANDS[name].module}"), name)
    assert isinstance(command, click.Command)
    assert command.help
    said = call(name, "--help").succeeds()
    assert said.out.startswith(f"Usage: fedq {name}")


def test_the_help_lists_every_command(call: Call) -> None:
    out = call("--help").succeeds().out
    for name in COMMANDS:
        assert f"\n  {name} " in out


def test_without_a_command_the_help_is_shown(call: Call) -> None:
    assert call().succeeds().out == call("--help").succeeds().out


def test_an_option_without_its_value_points_to_the_help_of_its_command(call: Call) -> None:
    call("run", "app", "--config").fails(2, "'--config' requires an argument", "see `fedq run --help`")


def test_the_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom fedq.cli.problem import run_command\nfrom fedq.cli.group import fedq\n"
        f"run_command(fedq, ['--help'])\nprint([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_the_help_costs_less_than_a_fifth_of_a_second() -> None:
    # Of the processor's time, which does not depend on what else the machine does.
    def cost() -> float:
        process = subprocess.Popen([sys.executable, "-m", "fedq.cli", "--help"], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        return usage.ru_utime + usage.ru_stime

    assert min(cost() for _ in range(5)) < 0.2


def test_every_command_that_reads_takes_json() -> None:
    context = click.Context(fedq)
    for name in COMMANDS.keys() - {"superlink", "supernode", "worker", "dashboard"}:  # which serve
        command = fedq.get_command(context, name)
        assert command is not None
        assert "--json" in {option for parameter in command.params for option in parameter.opts}, name


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nwe"], "nwe"),
        (["stop"], "RUN"),
        (["stop", "seven"], "seven"),
        (["runs", "--limit", "0"], "0"),
        (["run", "app", "--config", "rounds"], "key=value"),
        (["run", "app", "--config", "day=2024-01-01"], "date"),
        (["run", "app", "--config", "list=[1, 2]"], "list"),
        (["run", "app", "--node-label", "eu"], "label=value"),
        (["run", "app", "--timeout", "5s"], "--follow"),
        (["run", "app", "--timeout", "soon", "--follow"], "soon"),
        (["supernode"], "--name"),
        (["supernode", "--name", "a", "--slots", "0"], "0"),
        (["supernode", "--name", "a", "--isolation", "vm"], "vm"),
        (["supernode", "--name", "a", "--config", "x"], "key=value"),
        (["superlink", "--log-format", "xml"], "xml"),
        (["superlink", "--embedded", "data", "--redis-url", "redis://other"], "--embedded"),
        (["demo", "no-such-directory"], "no-such-directory"),
        (["runs", "prune", "--older-than", "-5"], "-5"),
    ],
)
def test_wrong_usage_is_one_line_that_points_to_the_help_and_code_2(call: Call, words: list[str], says: str) -> None:
    call(*words).fails(2, says, "--help")


def test_a_node_name_with_other_characters_is_refused_with_an_example(call: Call) -> None:
    call("supernode", "--name", "clinic_a").fails(1, "clinic_a", "clinic-a")


def test_options_can_come_from_variables(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDQ_SUPERNODE_NAME", "not a name")
    call("supernode").fails(1, "not a name")


def test_a_traceback_is_shown_with_debug_only(call: Call) -> None:
    said = call("runs", "--debug", "--redis-url", "unix:///nowhere/at/all.sock")
    assert said.code == 1
    assert "Traceback (most recent call last)" in said.err
    call("runs", "--redis-url", "unix:///nowhere/at/all.sock").fails(1, "nowhere")


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("1.5m", 90), ("2h", 7200), ("7d", 604800), ("0", 0)]
)
def test_spans_of_time_have_units(text: str, seconds: float) -> None:
    assert duration(text) == seconds


def options(command: click.Command, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Option]]:
    """Every option of a command and of those below it."""
    yield from ((words, option) for option in command.params if isinstance(option, click.Option))
    for name, below in command.commands.items() if isinstance(command, click.Group) else ():
        yield from options(below, (*words, name))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_can_come_from_the_variable_of_its_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    command = fedq.get_command(click.Context(fedq), name)
    assert command is not None
    for words, option in options(command, (name,)):
        word = next(word for word in option.opts if word.startswith("--"))
        variable = "_".join(["FEDQ", *words, word[2:]]).replace("-", "_").upper()
        with monkeypatch.context() as patch:
            patch.setenv(variable, "given")
            if word == "--redis-url" and name != "simulate":  # which brings its own unless it is told of one
                patch.delenv(variable)
                patch.setenv("FEDQ_REDIS_URL", "given")
            assert option.resolve_envvar_value(click.Context(command)) == "given", variable


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["new", "an-app"]], ids=" ".join)
def test_a_reader_that_has_seen_enough_is_no_error(words: list[str], tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "fedq.cli", *words],
            stdout=writing, stderr=subprocess.PIPE, text=True, check=False, cwd=tmp_path,
        )  # fmt: skip
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")
