"""What the server's append-only file says of a run: every write that took effect, in order, none left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO


@dataclass
class Audit:
    """Writes of the protocol, counted by message id."""

    pushed: Counter[str] = field(default_factory=Counter)
    claimed: dict[str, set[str]] = field(default_factory=dict)
    answered: Counter[str] = field(default_factory=Counter)
    attempts: set[str] = field(default_factory=set)
    outcomes: Counter[str] = field(default_factory=Counter)
    """How ClientApp and ServerApp jobs ended, as RQ's records say."""

    @property
    def messages(self) -> int:
        return len(self.pushed)

    @property
    def lost(self) -> list[str]:
        """Messages that were never answered."""
        return [m for m in self.pushed if not self.answered[m]]

    @property
    def duplicated(self) -> list[str]:
        """Messages that were pushed or answered more than once."""
        return [m for counts in (self.pushed, self.answered) for m, n in counts.items() if n > 1]

    @property
    def redeliveries(self) -> int:
        """Claims beyond the first of each message."""
        return sum(len(tokens) - 1 for tokens in self.claimed.values())

    def add(self, command: list[bytes]) -> None:
        match command:
            case [b"HSET" | b"HMSET", key, *pairs]:
                self._hash(key.decode(errors="replace"), pairs)
            case [b"XADD", key, *rest] if key.endswith(b":inbox"):
                fields = dict(zip(rest[-len(rest) + 1 :: 2], rest[-len(rest) + 2 :: 2], strict=False))
                if b"id" in fields:
                    self.pushed[fields[b"id"].decode()] += 1

    def _hash(self, key: str, pairs: list[bytes]) -> None:
        path = key.split(":")
        fields = dict(zip(pairs[::2], pairs[1::2], strict=False))
        if path[0] == "fedq" and path[-2:-1] == ["out"] and b"token" in fields:
            self.answered[path[-1]] += 1
        elif path[0] == "fedq" and path[-1] == "claims":
            for message, value in fields.items():
                token = value.split(b"|")[1].decode()
                if token:
                    self.claimed.setdefault(message.decode(), set()).add(token)
        elif path[0] == "fedq" and path[2:3] == ["run"] and len(path) == 4 and fields.get(b"token"):
            self.attempts.add(fields[b"token"].decode())
        elif path[:2] == ["rq", "job"] and b'"outcome"' in fields.get(b"meta", b""):
            self.outcomes[fields[b"meta"].split(b'"outcome"')[1].split(b'"')[1].decode()] += 1


def read(folder: Path) -> Audit:
    """The audit of a server's directory. Needs that the file was never rewritten."""
    found = Audit()
    for path in sorted(folder.rglob("*.incr.aof"), key=lambda p: int(p.name.split(".")[-3])):
        with path.open("rb") as file:
            for command in _commands(file):
                found.add([command[0].upper(), *command[1:]])
    return found


def _commands(file: BinaryIO) -> Iterator[list[bytes]]:
    while line := file.readline():
        if line.startswith(b"#"):
            continue
        if not line.startswith(b"*"):
            return  # A torn end, which the server cuts off as well.
        words = []
        for _ in range(int(line[1:])):
            size = file.readline()
            if not size.startswith(b"$"):
                return
            words.append(file.read(int(size[1:])))
            file.read(2)
        yield words
