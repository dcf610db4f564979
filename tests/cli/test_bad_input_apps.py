"""An app that does something wrong gets one clear line and exit code 1, and harms nobody else.

Every test ends with a good run on the same federation.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Call, Said
from tests.cli.deployment import NODES, Deployment, deployment, write_project
from tests.support import wait_until


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployment(tmp_path_factory.mktemp("federation")) as running:
        yield running


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_project(tmp_path_factory.mktemp("good"), package="good_app")


@pytest.fixture
def submit(federation: Deployment, call: Call, good: Path) -> Iterator[Call]:
    """``fedq run … --follow``; after the test a good run must work."""

    def run(*words: object) -> Said:
        return call("run", *words, "--follow", "--timeout", "60s", url=federation.url)

    yield run
    assert "finished" in run(good).succeeds().out, federation.output()


# -- the ServerApp -----------------------------------------------------------------------------------------------------


def test_a_message_to_an_unknown_node(submit: Call, tmp_path: Path) -> None:
    server = """
    @app.main()
    def main(grid, context):
        grid.push_messages([Message(RecordDict(), "nowhere", "train")])
    """
    submit(write_project(tmp_path, server=server)).fails(1, "no node of this name is registered: nowhere")


def test_an_app_without_main(submit: Call, tmp_path: Path) -> None:
    submit(write_project(tmp_path, server="")).fails(1, "without a main function", "@app.main()")


def test_a_server_app_that_raises(submit: Call, tmp_path: Path) -> None:
    server = """
    @app.main()
    def main(grid, context):
        raise RuntimeError("out of luck")
    """
    submit(write_project(tmp_path, server=server)).fails(1, "out of luck", "fedq log")


# -- the config and the project ----------------------------------------------------------------------------------------


def test_a_config_key_that_the_app_does_not_have(submit: Call, good: Path) -> None:
    submit(good, "--config", "rounds=3").fails(1, "rounds", "num-rounds")


@pytest.mark.parametrize("value", ["many", "true", '"3"'])
def test_a_config_value_of_the_wrong_type(submit: Call, good: Path, value: str) -> None:
    submit(good, "--config", f"num-rounds={value}").fails(1, "num-rounds", "int")


def test_a_project_that_is_not_there(submit: Call, tmp_path: Path) -> None:
    submit(tmp_path / "nothing").fails(1, "nothing")


def test_a_project_without_apps(submit: Call, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    submit(tmp_path).fails(1, "tool.fedq.app")


def test_a_project_whose_module_is_missing(submit: Call, tmp_path: Path) -> None:
    place = write_project(tmp_path)
    (place / "app_under_test" / "client_app.py").unlink()
    submit(place).fails(1, "client_app")


def test_a_project_that_imports_what_is_not_installed(submit: Call, tmp_path: Path) -> None:
    client = "import no_such_package_anywhere\n"
    submit(write_project(tmp_path, client=client)).fails(1, "no_such_package_anywhere")


# -- the ClientApp -----------------------------------------------------------------------------------------------------

REPLIES = {
    "None": ("return None", "returned None"),
    "a foreign object": ("return {'loss': 1.0}", "an object of type dict"),
    "a reply to another message": (
        "from fedq.apps.message import make_message\n"
        "    other = make_message(message.metadata.replace(message_id='f' * 32), RecordDict())\n"
        "    return Message(RecordDict(), reply_to=other)",
        "answers 'ffffffff",
    ),
    "the message itself": ("return message", "error 107"),
    "metrics that are not numbers": (
        "return Message(RecordDict({'arrays': message.content['arrays'], "
        "'metrics': MetricRecord({'loss': 'low', 'num-examples': 1})}), reply_to=message)",
        "not str (key 'loss')",
    ),
    "weights that are not numbers": (
        "return Message(RecordDict({'arrays': ArrayRecord([np.full(3, np.nan)]), "
        "'metrics': MetricRecord({'num-examples': 1})}), reply_to=message)",
        "finite",
    ),
    "a number of examples that is none": (
        "return Message(RecordDict({'arrays': message.content['arrays'], "
        "'metrics': MetricRecord({'num-examples': float('nan')})}), reply_to=message)",
        "'num-examples' is nan",
    ),
    "zero examples": (
        "return Message(RecordDict({'arrays': message.content['arrays'], "
        "'metrics': MetricRecord({'num-examples': 0})}), reply_to=message)",
        "'num-examples' is 0",
    ),
    "no metrics": (
        "return Message(RecordDict({'arrays': message.content['arrays']}), reply_to=message)",
        "MetricRecord",
    ),
    "an exception": ("raise ValueError('no data on this node')", "no data on this node"),
    "an exit": ("import os; os._exit(3)", "exited with status 3"),
}


@pytest.mark.parametrize("what", REPLIES)
def test_a_client_app_that_gives_back(submit: Call, tmp_path: Path, what: str) -> None:
    code, says = REPLIES[what]
    client = f"@app.train()\ndef train(message, context):\n    {code}\n"
    said = submit(write_project(tmp_path, client=client), "--max-deliveries", "1").fails(1, says)
    # Each node's failure is a line of its own.
    for name in NODES:
        assert f"left out: {name}" in said.out


def test_an_action_that_the_client_app_does_not_have(submit: Call, tmp_path: Path) -> None:
    client = "@app.evaluate()\ndef evaluate(message, context):\n    return None\n"
    submit(write_project(tmp_path, client=client)).fails(1, "@app.train()")


def test_a_bundle_that_does_not_unpickle(submit: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Packed as objects, since a module is named and not a project.
    bomb = """
    class Bomb:
        def __reduce__(self):
            return (int, ("no number",))

    bomb = Bomb()

    @app.train()
    def train(message, context):
        return bomb
    """
    place = write_project(tmp_path, client=bomb, package="bomb_app")
    monkeypatch.syspath_prepend(str(place))
    submit(
        "bomb_app.server_app:app",
        "bomb_app.client_app:app",
        "-c",
        "num-rounds=1",
        "-c",
        "nodes=3",
        "-c",
        "timeout=20.0",
    ).fails(1, "cannot be loaded", "no number")


# -- the nodes ---------------------------------------------------------------------------------------------------------


def test_no_node_has_the_label(submit: Call, good: Path) -> None:
    said = submit(good, "--node-label", "site=mars").fails(1, "0 of 3 nodes")
    assert "waiting for nodes: 0 of 3 nodes" in said.out


def test_too_few_nodes(submit: Call, good: Path) -> None:
    submit(good, "--config", "nodes=9").fails(1, "3 of 9 nodes")


@pytest.mark.leaves_processes
def test_a_node_that_vanishes(federation: Deployment, submit: Call, tmp_path: Path) -> None:
    client = """
    @app.train()
    def train(message, context):
        import os, signal
        if context.node_id == "c":
            # As if the machine went: the whole service, this process included.
            os.kill(int(context.run_config["pid"]), signal.SIGKILL)
            signal.pause()
        arrays = message.content["arrays"]
        return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})}), reply_to=message)
    """
    pid = federation.services["c"].pid
    place = write_project(tmp_path, client=client, config=f"pid = {pid}")
    said = submit(place, "--config", "timeout=3.0").succeeds()
    assert "1 unanswered" in said.out
    wait_until(lambda: not federation.services["c"].running, "the service is gone")
    federation.serve_node("c", 2)
    federation.wait_until_complete()


def test_a_second_supernode_of_a_name(federation: Deployment, submit: Call, call: Call) -> None:
    call("supernode", "--name", "a", url=federation.url).fails(1, "'a' is already running", "choose another --name")
