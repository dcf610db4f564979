"""The checks that every test runs under notice what a test leaves behind, and name it."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-c", str(ROOT / "pyproject.toml")]
COMMAND += ["-p", "no:cacheprovider", "-p", "no:hypothesispytest"]

LEAKY = """
    import os, socket, subprocess, sys, tempfile, time
    import pytest

    kept = []

    def test_processes():
        kept.append(subprocess.Popen(["sleep", "61"]))
        # An orphan with a program of its own, and one that was only forked.
        code = "import subprocess; subprocess.Popen(['sleep', '62'], start_new_session=True)"
        subprocess.run([sys.executable, "-c", code], check=True)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            if os.fork() == 0:
                os.setsid()
                os.write(writing, b"x")
                while True:
                    time.sleep(1)
            os._exit(0)
        os.waitpid(child, 0)
        os.read(reading, 1)
        os.close(reading)
        os.close(writing)

    def test_socket():
        kept.append(socket.socket())

    def test_client(server):
        kept.append(server.client())
        kept[-1].ping()

    def test_file():
        tempfile.mkdtemp(prefix="fedq-")

    def test_key(redis):
        redis.set("fedq:{0}:run:1", "x")

    def test_rq_key(redis):
        redis.sadd("rq:workers", "x")

    @pytest.mark.leaves_keys("fedq:{0}:run:*")
    def test_other_key(redis):
        redis.set("fedq:{0}:run:1", "x")
        redis.set("fedq:{0}:nodes", "x")
"""

CLEAN = """
    import subprocess, sys
    import pytest

    def test_children_that_end():
        subprocess.run(["true"], check=True)
        subprocess.Popen(["sleep", "0.2"]).wait()

    def test_keys_that_expire_or_are_not_ours(redis):
        redis.set("fedq:{0}:node:a:alive", "x", ex=60)
        redis.set("mine", "x")
        redis.sadd("rq:queues", "rq:queue:a")

    def test_the_next_test_finds_an_empty_server(redis):
        assert redis.keys() == []

    @pytest.mark.leaves_keys
    def test_any_key(redis):
        redis.set("fedq:{0}:run:1", "x")

    @pytest.mark.leaves_keys("fedq:{0}:run:*", "rq:*")
    def test_keys_that_match(redis):
        redis.set("fedq:{0}:run:1", "x")
        redis.set("rq:job:1", "x")

    def test_a_server_of_its_own(own_server):
        with own_server.client() as client:
            client.set("fedq:{0}:run:1", "x")
        own_server.crash()
        own_server.restart()
        assert own_server.keys() == ["fedq:{0}:run:1"]

    def test_the_relay(relay):
        assert relay.now() > 0
"""


def outcomes(code: str, folder: Path) -> tuple[set[str], set[str], str]:
    """Names of the tests that passed every check, names of those with an error, and what pytest printed."""
    file = folder / "test_inner.py"
    file.write_text(textwrap.dedent(code))
    done = subprocess.run(
        [*COMMAND, "-v", str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    failed = set(re.findall(r"^(?:ERROR|FAILED) \S*::(test_\w+)", done.stdout, re.MULTILINE))
    passed = set(re.findall(r"::(test_\w+)\S* PASSED", done.stdout)) - failed
    return passed, failed, done.stdout + done.stderr


def test_each_kind_of_leak_is_an_error_of_the_test_that_made_it(tmp_path: Path) -> None:
    passed, failed, output = outcomes(LEAKY, tmp_path)
    assert not passed, output
    assert failed == set(re.findall(r"def (test_\w+)", LEAKY)), output
    for said in (
        "sleep 61",
        "sleep 62",
        f"-m pytest -p tests.conftest -c {ROOT}",
        "sockets open",
        "left temporary files behind: fedq-",
        "left 1 keys behind: fedq:{0}:run:1",
        "left 1 keys behind: fedq:{0}:nodes",
        "left 1 keys behind: rq:workers",
    ):
        assert said in output, said


def test_a_test_that_cleans_up_passes_them_all(tmp_path: Path) -> None:
    passed, failed, output = outcomes(CLEAN, tmp_path)
    assert not failed, output
    assert passed == set(re.findall(r"def (test_\w+)", CLEAN)), output


def test_the_long_ones_run_only_with_all(tmp_path: Path) -> None:
    marks = ("browser", "peer", "fuzz", "chaos", "servers", "slow")
    code = "".join(f"@pytest.mark.{mark}\ndef test_{mark}(): pass\n" for mark in marks)
    passed, failed, output = outcomes(f"import pytest\n{code}def test_short(): pass\n", tmp_path)
    assert passed == {"test_short"}, output
    assert not failed, output
    assert "6 deselected" in output
