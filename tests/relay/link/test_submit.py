"""What a data scientist does: submit, follow, fetch, stop. Against a SuperLink that is a process of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedq.apps import AppError, AppIncomplete, ClientApp, ConfigError, ServerApp
from fedq.relay import SuperLink, runs
from fedq.relay.errors import RelayUnavailable, RunFailed, RunNotFound, RunStopped, RunTimeout
from tests.conftest import lasting_keys
from tests.relay.link import apps
from tests.relay.link.conftest import Setting
from tests.relay.link.responder import log_lines
from tests.support import RealServer
from tests.support.waiting import wait_until


def test_a_run_gives_its_arrays_and_metrics_and_tells_its_rounds(served: Setting) -> None:
    served.node("a")
    served.node("b")
    link = served.link()
    run = link.submit(apps.server, apps.client, config={"num-rounds": 3, "size": 50_000}, name="three rounds")
    kinds = [(event.kind, event.data.get("status") or event.data.get("round")) for event in run.events(timeout=60)]
    assert [kind for kind in kinds if kind[0] in ("status", "round")] == [
        *(("status", "pending"), ("status", "running")),
        *(("round", 1), ("round", 2), ("round", 3)),
        ("status", "finished"),
    ]
    result = run.result(timeout=10)
    np.testing.assert_array_equal(result.arrays.to_numpy_ndarrays()[0], np.full(50_000, 3.0))
    assert dict(result.train_metrics_clientapp[3])["loss"] == 0.5
    assert dict(result.evaluate_metrics_clientapp[1])["accuracy"] == 0.25
    assert (result.run_id, result.name, result.attempts) == (run.run_id, "three rounds", 1)
    assert result.config == {"num-rounds": 3, "size": 50_000}
    assert run.status == "finished"


def test_nothing_of_a_finished_run_is_left_but_what_is_kept(served: Setting) -> None:
    served.node("a")
    link = served.link()
    run = link.submit(apps.server, apps.client, config={"size": 50_000})
    digest = next(iter(served.relay.redis.scan_iter(f"{served.relay.keys.obj('')}*:owners")))
    assert digest
    result = run.result(timeout=60)
    base = served.relay.keys.base
    kept = {f"{base}run:{run.run_id}", f"{base}run:{run.run_id}:events", f"{base}run:{run.run_id}:objs"}
    around = {f"{base}{name}" for name in ("nodes", "node:a:info", "node:a:inbox", "runs", "run-counter", "wake")}
    around |= {f"{base}housekeeper", f"{base}links"}

    def left() -> list[str]:
        names = [name for name in lasting_keys(served.server) if name.startswith(base)]
        return [name for name in names if name not in kept | around and ":obj:" not in name]

    def objects() -> set[str]:
        return {name for name in lasting_keys(served.server) if name.startswith(f"{base}obj:")}

    wait_until(lambda: not left(), lambda: f"these go: {left()}")
    wait_until(lambda: len(objects()) == 3, lambda: f"manifest, chunk and owners of the final array: {objects()}")
    np.testing.assert_array_equal(run.result().arrays.to_numpy_ndarrays()[0], result.arrays.to_numpy_ndarrays()[0])
    run.remove()
    assert not objects()
    with pytest.raises(RunNotFound):
        run.info()


def test_what_a_serverapp_prints_and_logs_is_in_its_events(served: Setting) -> None:
    run = served.link().submit(apps.printing, apps.client)
    found = list(run.events(timeout=60))
    lines = [(event.data["text"], event.data["level"], event.data["origin"]) for event in found if event.kind == "log"]
    assert ("printed", "INFO", "stdout") in lines
    assert ("logged", "WARNING", "my.app") in lines
    assert ("in two lines", "WARNING", "my.app") in lines
    assert [event.data["value"] for event in found if event.kind == "metric"] == [42]
    assert run.result().arrays.to_numpy_ndarrays()[0].tolist() == [0, 1, 2]


def test_log_lines_of_nodes_come_once_before_and_after_the_end(served: Setting) -> None:
    served.node("held").hold()
    link = served.link()
    run = link.submit(apps.waiting, apps.client)
    live: list[Any] = []
    thread = threading.Thread(target=lambda: live.extend(run.logs(follow=True)))
    thread.start()
    wait_until(lambda: runs.run_nodes(served.relay, run.run_id), "the run has sent its message", timeout=30)
    log_lines(served.relay, "held", run.run_id, "one", "two", "two")
    wait_until(lambda: len(live) >= 3, "the lines are there")
    run.stop()
    thread.join(20)
    assert [event.data["text"] for event in live] == ["one", "two", "two"]
    wait_until(lambda: run.run_id not in runs.alive_runs(served.relay), "the run is cleaned up")
    again = [event.data["text"] for event in run.logs() if event.data.get("node") == "held"]
    assert again == ["one", "two", "two"]
    assert not [event for event in run.events() if event.data.get("node") == "held"]


def test_a_failed_run_raises_with_the_traceback_of_its_serverapp(served: Setting) -> None:
    run = served.link().submit(apps.failing, apps.client)
    with pytest.raises(RunFailed) as raised:
        run.result(timeout=60)
    assert raised.value.reason == "ZeroDivisionError: division by zero"
    trace = str(raised.value.traceback)
    assert "in fail" in trace
    assert "in divide" in trace
    assert "serverapps.py" not in trace
    assert raised.value.run_id == run.run_id


def test_a_serverapp_that_exits_has_failed(served: Setting) -> None:
    with pytest.raises(RunFailed, match=r"called sys.exit\('enough'\)"):
        served.link().submit(apps.leaving, apps.client).result(timeout=60)


def test_a_bundle_that_does_not_load_fails_the_run_and_the_next_one_is_fine(
    served: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedq.relay import bundles

    served.node("a")
    link = served.link()
    with monkeypatch.context() as patch:
        patch.setattr(bundles, "pack_object", lambda app: bundles.Bundle("object", b"cno_such_package\nThing\n."))
        run = link.submit(apps.server, apps.client)
    with pytest.raises(RunFailed, match="needs the Python package 'no_such_package'"):
        run.result(timeout=60)
    link.submit(apps.server, apps.client).result(timeout=60)


def test_a_stopped_run_ends_within_seconds_and_says_so(served: Setting) -> None:
    served.node("held").hold()
    run = served.link().submit(apps.waiting, apps.client)
    event = next(event for event in run.events(timeout=60) if event.kind == "metric")
    pid = int(event.data["value"])
    assert run.stop("no longer needed")
    assert not run.stop()
    with pytest.raises(RunStopped, match="no longer needed"):
        run.result(timeout=10)
    wait_until(lambda: not _exists(pid), "the ServerApp's process is gone")


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_serverapp_that_is_killed_goes_on_from_its_checkpoint(served: Setting, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    run = served.link().submit(apps.dying, apps.client, config={"file": str(notes), "times": 1, "save": True})
    assert run.result(timeout=60).attempts == 2
    assert notes.read_text().split() == ["0", "1"]
    (line,) = [event.data["text"] for event in run.logs() if event.data.get("origin") == "fedq"]
    assert line.startswith("the process of the ServerApp was lost in attempt 1: ")


def test_one_that_is_killed_again_and_again_fails_the_run(served: Setting, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    link = served.link()
    run = link.submit(apps.dying, apps.client, config={"file": str(notes), "times": 99}, max_attempts=3)
    with pytest.raises(RunFailed, match=r"started 3 times from checkpoint 0 and was lost each time.*SIGKILL"):
        run.result(timeout=60)
    assert notes.read_text().split() == ["0", "0", "0"]


def test_a_run_waits_for_a_free_slot_and_says_so(setting: Setting) -> None:
    setting.node("held").hold()
    setting.superlink(slots=1)
    link = setting.link()
    first = link.submit(apps.waiting, apps.client)
    wait_until(lambda: first.status == "running", "the first run has started", timeout=30)
    second = link.submit(apps.printing, apps.client)
    wait_until(lambda: second.info().detail == "no free slot", "the second run says what it waits for")
    with pytest.raises(RunTimeout, match=r"still pending \(no free slot\) after 0 s"):
        second.result(timeout=0)
    first.stop()
    assert second.result(timeout=30).arrays


def test_two_submits_with_one_client_token_make_one_run(setting: Setting, server: RealServer) -> None:
    link = setting.link()
    first = link.submit(apps.printing, apps.client, client_token="t1")
    second = link.submit(apps.printing, apps.client, client_token="t1")
    assert first == second
    assert link.runs() == [first]
    first.stop()
    first.remove()
    assert not [name for name in lasting_keys(server) if ":obj:" in name], "nothing holds the bundle any more"


def test_two_runs_share_a_bundle_and_each_can_go(setting: Setting, server: RealServer) -> None:
    link = setting.link()
    made = [link.submit(apps.printing, apps.client) for _ in range(2)]
    for run in made:
        run.stop()
    made[0].remove()
    assert [name for name in lasting_keys(server) if ":obj:" in name]
    made[1].remove()
    assert not [name for name in lasting_keys(server) if ":obj:" in name]


def test_a_project_directory_is_submitted_with_its_config(served: Setting, tmp_path: Path) -> None:
    from tests.relay.link.test_bundles import CLIENT, PYPROJECT, write

    server_app = """
from fedq.apps import *
app = ServerApp()
@app.main()
def main(grid, context):
    (reply,) = grid.send_and_receive([Message(RecordDict(), n, "query") for n in grid.get_node_ids()], timeout=30)
    price = reply.content.metric_records["m"]["price"]
    grid.emit("metric", {"price": price, **context.run_config})
"""
    root = tmp_path / "shop"
    for name, text in (
        *(("pyproject.toml", PYPROJECT), ("shop/__init__.py", ""), ("shop/prices.py", "PRICE = 7\n")),
        *(("shop/late.py", "MORE = 1\n"), ("shop/client.py", CLIENT), ("shop/server.py", server_app)),
    ):
        write(root / name, text)
    link = served.link()
    with pytest.raises(ConfigError, match="'rounds'"):
        link.submit(root, config={"rounds": 1})
    with _loaded_app(served):
        run = link.submit(root, config={"num-rounds": 1})
        (event,) = [event for event in run.events(timeout=60) if event.kind == "metric"]
    assert event.data == {"price": 8, "num-rounds": 1, "rate": 0.5, "optimizer.name": "sgd", "flag": True}
    assert run.info().name == "shop"


@contextlib.contextmanager
def _loaded_app(served: Setting) -> Any:
    """A node that loads the project in this process, and what that leaves behind taken back."""
    import sys

    path = list(sys.path)
    served.node("a")
    try:
        yield
    finally:
        sys.path[:] = path
        for name in [name for name in sys.modules if name.partition(".")[0] == "shop"]:
            del sys.modules[name]


def test_a_submit_is_signed_for_nodes_that_ask_for_it(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = Ed25519PrivateKey.generate()
    (tmp_path / "key").write_bytes(key.private_bytes_raw())
    link = setting.link()
    given = link.submit(apps.printing, apps.client, signing_key=key.private_bytes_raw()).info()
    monkeypatch.setenv("FEDQ_SIGNING_KEY", str(tmp_path / "key"))
    by_environment = link.submit(apps.printing, apps.client).info()
    for info in (given, by_environment):
        key.public_key().verify(bytes.fromhex(info.fields["client_signature"].decode()), info.client_bundle.encode())
    monkeypatch.setenv("FEDQ_SIGNING_KEY", str(tmp_path / "nothing"))
    with pytest.raises(AppError, match="nothing cannot be read: No such file"):
        link.submit(apps.printing, apps.client)


def test_apps_are_submitted_by_reference(served: Setting) -> None:
    run = served.link().submit("tests.relay.link.apps:printing", "tests.relay.link.apps:client")
    assert run.result(timeout=60).arrays


@pytest.mark.parametrize(
    ("words", "arguments", "error"),
    [
        ("ServerApp without a main", (ServerApp(), ClientApp()), AppIncomplete),
        ("is ClientApp, not a ServerApp", (ClientApp(), ClientApp()), AppError),
        ("needs two apps", (apps.server,), AppError),
        ("is no directory", ("nowhere",), AppError),
    ],
)
def test_what_is_no_app_is_refused(words: str, arguments: Any, error: type, setting: Setting) -> None:
    with pytest.raises(error, match=words):
        setting.link().submit(*arguments)
    assert setting.link().runs() == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"durability": "all"}, "durability"),
        ({"max_deliveries": 0}, "max_deliveries"),
        ({"time_limit": -1}, "time_limit"),
        ({"nodes": {"site": 1}}, "nodes is a mapping of labels"),
        ({"config": {"a": None}}, "a = None of type NoneType"),
    ],
)
def test_what_cannot_be_is_refused(options: Any, words: str, setting: Setting) -> None:
    with pytest.raises(AppError, match=words):
        setting.link().submit(apps.printing, apps.client, **options)
    assert setting.link().runs() == []


def test_a_server_that_is_not_there_is_told_at_once() -> None:
    with pytest.raises(RelayUnavailable, match="no Redis server answers at unix:"):
        SuperLink.connect("unix:///tmp/fq-there-is-none.sock")


def test_a_superlink_that_is_told_to_stop_gives_its_runs_back(setting: Setting) -> None:
    setting.node("held").hold()
    first = setting.superlink(grace=0.2)
    run = setting.link().submit(apps.waiting, apps.client)
    wait_until(lambda: run.status == "running", "the run has started", timeout=30)
    assert first.stop() == 0
    info = run.info()
    assert (info.status, info.token, info.tries) == ("running", "", 0), "the attempt does not count"
    setting.superlink()
    wait_until(lambda: run.info().attempt == 2, "another SuperLink goes on", timeout=30)
    run.stop()


@pytest.mark.slow
def test_a_superlink_that_is_killed_is_replaced(setting: Setting) -> None:
    setting.node("held").hold()
    first = setting.superlink()
    run = setting.link().submit(apps.waiting, apps.client)
    wait_until(lambda: run.status == "running", "the run has started", timeout=30)
    os.kill(first.pid, signal.SIGKILL)
    second = setting.superlink()
    wait_until(lambda: run.info().attempt == 2, lambda: f"another SuperLink goes on: {second.output()}", timeout=40)
    run.stop()


def test_a_failed_run_is_resumed_by_hand_and_runs_nothing_twice(served: Setting, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    node = served.node("clinic")
    link = served.link()
    run = link.submit(
        apps.dying_late, apps.client, config={"file": str(notes), "times": 2, "num-rounds": 3}, max_attempts=2
    )
    with pytest.raises(RunFailed, match=r"started 2 times from checkpoint \d and was lost each time"):
        run.result(timeout=60)
    assert run.info().resumable
    run.resume()
    result = run.result(timeout=60)
    assert result.attempts == 3
    np.testing.assert_array_equal(result.arrays.to_numpy_ndarrays()[0], np.full(3, 3.0))
    assert len(node.seen) == len(set(node.seen)) == 6, "a message to train and one to evaluate in each round"
    (reason,) = [e.data["reason"] for e in run.events() if e.kind == "status" and e.data["status"] == "failed"]
    assert "was lost each time" in reason
    assert [e.data["round"] for e in run.events() if e.kind == "round"] == [1, 2, 3]


def test_a_process_that_is_killed_while_a_buffer_fills_loses_and_repeats_nothing(
    served: Setting, tmp_path: Path
) -> None:
    nodes = [served.node(name) for name in ("a", "bb", "ccc")]
    notes = tmp_path / "notes"
    run = served.link().submit(apps.dying_buffered, apps.ticketed, config={"file": str(notes), "times": 2})
    result = run.result(timeout=60)
    assert result.attempts == 3
    rounds = [event.data for event in run.events() if event.kind == "round"]
    assert [(data["round"], data["replies"], data["failures"]) for data in rounds] == [(n, 4, 0) for n in (1, 2, 3)]
    tickets = [set(metrics["tickets"]) for metrics in result.train_metrics_clientapp.values()]
    assert [len(several) for several in tickets] == [4, 4, 4]
    assert len(set.union(*tickets)) == 12, "a reply was counted twice"
    killed, again, at_last, next_round = (
        {float(word) for word in line.split()} for line in notes.read_text().splitlines()
    )
    assert killed == again == at_last < tickets[1], "what had been in the buffer is in it again"
    assert next_round < tickets[2]
    for node in nodes:
        assert len(node.seen) == len(set(node.seen)), "a message was carried out twice"


def test_only_what_failed_and_is_still_there_is_resumed(served: Setting) -> None:
    link = served.link()
    finished = link.submit(apps.printing, apps.client)
    finished.result(timeout=60)
    with pytest.raises(AppError, match=r"run \d+ has finished; there is nothing to go on with"):
        finished.resume()
    unsaved = link.submit(apps.failing, apps.client)
    unsaved.wait(timeout=60)
    with pytest.raises(AppError, match="has saved no checkpoint to go on from; submit it again"):
        unsaved.resume()
