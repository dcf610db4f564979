"""Running the code blocks of Markdown files.

``python`` blocks of one file share a namespace, as in one session. ``console`` blocks are shell sessions: lines that
begin with ``$ `` are commands (``> `` continues one), the others are what they print, in which ``…`` stands for
anything; lines that are not shown are allowed, and the number of spaces does not matter. ``toml`` and ``json`` blocks
are parsed. ``text`` blocks are pictures.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.services import SCRIPTS

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"^```(\S*)\s*$")

INSTEAD = {
    # What would test itself, or needs a machine of its own, is looked at rather than run; a script knows its clone by
    # where it is.
    r"scripts/demo\b": f"{ROOT}/scripts/demo",
    r"scripts/test\b": "bash -n scripts/test && test -x scripts/test",
    r"\.ci/run\b": "bash -n .ci/run && test -x .ci/run",
    r"git clone ": "true",
    r"cd fedq$": "true",
    r"pip install ": "python -m pip --version",
    r"docker compose up": "test -f docker-compose.yml && test -f Dockerfile",
    r"sudo cp (\S+)": r"ls \1",
    r"sudo systemctl .*@": "ls scripts/systemd/*@.service",
    r"sudo systemctl ": "ls scripts/systemd/*.service",
    r"fedq dashboard\b": "fedq dashboard --help",
}


@dataclass(frozen=True)
class Block:
    """One code block: its language, text and the number of its first line."""

    language: str
    text: str
    line: int


def blocks(path: Path) -> list[Block]:
    """The code blocks of a Markdown file."""
    found: list[Block] = []
    language: str | None = None
    start, lines = 0, list[str]()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if language is None and (match := _FENCE.match(line)):
            language, start, lines = match[1], number + 1, []
        elif language is not None and line.strip() == "```":
            found.append(Block(language, "\n".join(lines) + "\n", start))
            language = None
        elif language is not None:
            lines.append(line)
    assert language is None, f"{path}: the block at line {start} has no end"
    return found


def run_document(path: Path, folder: Path, environment: Mapping[str, str], *, short: bool = False) -> int:
    """Execute every block of a document, in order, in ``folder``; returns how many there were.

    ``short``: the demo runs for fewer rounds.
    """
    for name in ("scripts", ".ci", "docker-compose.yml", "Dockerfile", "examples"):
        (folder / name).symlink_to(ROOT / name)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    count = 0
    for block in blocks(path):
        where = f"{path.relative_to(ROOT)}:{block.line}"
        count += 1
        if block.language == "python":
            # The right line numbers in tracebacks.
            code = compile("\n" * (block.line - 1) + block.text, str(path), "exec")
            exec(code, namespace)
        elif block.language == "console":
            _run_session(block, where, folder, environment, short)
        elif block.language == "toml":
            assert tomllib.loads(block.text), where
        elif block.language == "json":
            json.loads(block.text)
        else:
            assert block.language in ("text", "mermaid"), f"{where}: a block of {block.language!r} is not executed"
    return count


def _run_session(block: Block, where: str, folder: Path, environment: Mapping[str, str], short: bool) -> None:
    script = folder / "session.sh"
    lines = [line.replace("scripts/demo", "scripts/demo --rounds 8") if short else line for line in _shell(block)]
    script.write_text("\n".join(["set -euo pipefail", *lines]) + "\n")
    process = subprocess.Popen(
        ["bash", str(script)],
        cwd=folder,
        env={**os.environ, **environment, "PATH": f"{SCRIPTS}:{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=180)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        raise AssertionError(f"{where} did not end; it printed:\n{output}") from None
    assert process.returncode == 0, f"{where} failed with {process.returncode}:\n{output}"
    rest = output.splitlines()
    for expected in _expected(block):
        pattern = ".*".join(re.escape(" ".join(part.split())) for part in expected.split("…"))
        lines = (" ".join(line.split()) for line in rest)
        place = next((i for i, line in enumerate(lines) if re.fullmatch(pattern, line)), None)
        assert place is not None, f"{where}: {expected!r} was not printed (in this order); printed was:\n{output}"
        rest = rest[place + 1 :]


def _commands(block: Block) -> Iterator[str]:
    command = ""
    for line in block.text.splitlines():
        if line.startswith("$ "):
            if command:
                yield command
            command = line[2:]
        elif line.startswith("> ") and command:
            command += "\n" + line[2:]
        elif command:
            yield command
            command = ""
    if command:
        yield command


def _expected(block: Block) -> list[str]:
    # A line of dots stands for any number of lines, which need not be shown anyway.
    return [line for line in block.text.splitlines() if line.strip(" …") and not line.startswith(("$ ", "> "))]


def _shell(block: Block) -> Iterator[str]:
    yield "trap 'kill $(jobs -p) 2>/dev/null || true; wait || true' EXIT"
    for raw in _commands(block):
        command = raw.split("   # ")[0].rstrip()
        for pattern, instead in INSTEAD.items():
            if match := re.match(pattern, command):
                command = match.expand(instead)
                break
        if not command.endswith("&"):
            yield command
            continue
        # A person would read what the service says before going on.
        log = f"service-{len(command)}-{abs(hash(command)) % 10**6}.log"
        yield f"{command[:-1].rstrip()} >{log} 2>&1 &"
        if match := re.search(r"--embedded (\S+)", command):
            yield f"until [ -e {match[1]}/url ]; do kill -0 $! || {{ cat {log}; exit 1; }}; sleep 0.05; done"
        elif match := re.search(r"supernode --name (\S+)", command):
            yield (
                f"until fedq nodes | grep -q '^{match[1]} .*online'; do "
                f"kill -0 $! || {{ cat {log}; exit 1; }}; sleep 0.3; done"
            )
