"""SIGTERM ends a service well at any time, also before it has started its processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tests.support.servers import RealServer

COMMANDS = {
    "superlink": ["superlink", "--runs", "1"],
    "supernode": ["supernode", "--name", "early"],
    "worker": ["worker", "--node", "early"],
}


@pytest.mark.leaves_keys
@pytest.mark.parametrize("service", COMMANDS)
def test_a_service_told_to_stop_at_its_first_word_ends_with_status_0(server: RealServer, service: str) -> None:
    environment = {**os.environ, "FEDQ_REDIS_URL": server.url, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "fedq.cli", *COMMANDS[service]], env=environment, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    with process.stderr:
        assert process.stderr.readline(), "the service says something"
        process.send_signal(signal.SIGTERM)
        said = process.stderr.read()
    assert process.wait(30) == 0, said
