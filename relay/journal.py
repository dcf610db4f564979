"""The journal of a ServerApp: what calls of its Grid returned, so that it is told the same when it runs again.

One hash per run, emptied by each checkpoint. A name is a kind of call and its number among the calls of that kind since
the checkpoint, such as ``receive:3``; kinds are counted by themselves, so that one call more of one kind does not shift
the others. The first writer wins.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fedq.relay.connection import Relay
from fedq.relay.errors import Fenced, RunOver, RunStopped
from fedq.relay.scripts import StepCall
from fedq.relay.texts import text

FREED = "freed"
"""The name under which a run notes that answers since the checkpoint are gone: it cannot be replayed any more."""


def over(run: int, status: str) -> RunOver:
    """The error for a step that found the run at its end."""
    if status == "stopped":
        return RunStopped(f"run {run} was stopped; nothing is written for it any more", run_id=run)
    return RunOver(f"run {run} is over ({status}); nothing is written for it any more", run_id=run)


def fenced(run: int) -> Fenced:
    """The error for a step that found another attempt holding the run."""
    return Fenced(f"another attempt of run {run}'s ServerApp holds the run now; this one ends", run_id=run)


@dataclass(frozen=True, slots=True)
class Noted:
    """What stands in the journal, and the run's revision since then."""

    value: str
    revision: int


def record(relay: Relay, run: int, token: str, checkpoint: int, name: str, value: str) -> Noted:
    """Note what a call returned, unless it is noted already; returns what stands there.

    The revision grows with each note: a server that shows a smaller one later has lost the note, and perhaps the reply
    that it is about. Raises Fenced or RunOver when the run is no longer this attempt's.
    """
    step = _step(relay, run, token, checkpoint, name, value)
    return _noted(run, relay.call(step.name, step.keys, step.args))


def record_and_read(
    relay: Relay, run: int, token: str, checkpoint: int, name: str, value: str, keys: Sequence[str]
) -> tuple[Noted, list[dict[bytes, bytes]]]:
    """The same, and the hashes of these keys as they are then, in the same round trip."""
    reply, *found = relay.together(
        _step(relay, run, token, checkpoint, name, value), *(("HGETALL", key) for key in keys)
    )
    return _noted(run, reply), found


def _step(relay: Relay, run: int, token: str, checkpoint: int, name: str, value: str) -> StepCall:
    return StepCall("journal", [relay.keys.run(run), relay.keys.journal(run)], [token, checkpoint, name, value])


def _noted(run: int, reply: Sequence[Any]) -> Noted:
    match text(reply[0]):
        case "OK":
            return Noted(text(reply[2]), int(reply[1]))
        case "OVER":
            raise over(run, text(reply[1]))
        case _:
            raise fenced(run)


def read(relay: Relay, run: int) -> dict[str, str]:
    """Everything noted since the last checkpoint, pushes included."""
    with relay.errors():
        raw: Any = relay.redis.hgetall(relay.keys.journal(run))
    return {text(name): text(value) for name, value in raw.items()}


class Replay:
    """The place of one attempt in the journal: what is still to be replayed, and under which name to note the next."""

    def __init__(self, known: dict[str, str] | None = None) -> None:
        self._known = dict(known or {})
        self._counts: Counter[str] = Counter()

    def name(self, kind: str) -> str:
        """The name of the next call of this kind."""
        return f"{kind}:{self._counts[kind]}"

    def peek(self, kind: str) -> str | None:
        """What the next call of this kind returned the first time, or None if it was not made before."""
        return self._known.get(self.name(kind))

    def advance(self, kind: str) -> None:
        """Go on behind that call."""
        self._counts[kind] += 1

    def leave(self, kind: str) -> None:
        """The app takes another way than before: go on behind everything noted of this kind."""
        numbers = [int(name.partition(":")[2]) for name in self._known if name.startswith(f"{kind}:")]
        self._counts[kind] = max([self._counts[kind], *(number + 1 for number in numbers)])

    def clear(self) -> None:
        """A checkpoint was written: what was noted before it is gone."""
        self._known.clear()
        self._counts.clear()
