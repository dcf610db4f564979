"""Calling the command line in this process, and checking what it said."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fedq.cli import problem
from fedq.cli.group import fedq
from tests.support import RealServer


@dataclass(frozen=True)
class Said:
    """The outcome of one command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """stdout as one JSON document, with nothing before or behind it."""
        return json.loads(self.out)

    def fails(self, code: int, *words: str) -> Said:
        """Assert the exit code, that stderr is one line, and that it holds ``words``."""
        assert self.code == code, f"exit code {self.code}, stdout {self.out!r}, stderr {self.err!r}"
        lines = self.err.splitlines()
        assert len(lines) == 1, f"not one line: {self.err!r}"
        assert lines[0].startswith("fedq: ")
        for word in words:
            assert word in lines[0], f"{word!r} is not in {lines[0]!r}"
        return self

    def succeeds(self) -> Said:
        """Assert that it went well."""
        assert self.code == 0, f"exit code {self.code}, stdout {self.out!r}, stderr {self.err!r}"
        return self


Call = Callable[..., Said]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """Run ``fedq WORDS`` in this process; ``url`` is FEDQ_REDIS_URL."""

    def run(*words: object, url: str | None = None) -> Said:
        monkeypatch.setattr(problem._Debug, "on", False)
        with monkeypatch.context() as patch:
            if url is not None:
                patch.setenv("FEDQ_REDIS_URL", url)
            capsys.readouterr()
            code = problem.run_command(fedq, [str(word) for word in words])
        out, err = capsys.readouterr()
        return Said(code, out, err)

    return run


@pytest.fixture
def served(call: Call, server: RealServer) -> Call:
    """``call`` with the session's server as FEDQ_REDIS_URL."""

    def run(*words: object) -> Said:
        return call(*words, url=server.url)

    return run


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder whose name leaves room for a socket's, which would else be put where a killed command leaves it."""
    with tempfile.TemporaryDirectory(prefix="k-") as name:
        yield Path(name)
