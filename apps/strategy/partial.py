"""What an aggregation has made of the replies so far, as a checkpoint in mid-round keeps it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol

from fedq.apps.configrecord import ConfigRecord
from fedq.apps.errors import StrategyError
from fedq.apps.grid import JSON, Grid, OnOffline
from fedq.apps.message import Message
from fedq.apps.recorddict import RecordDict
from fedq.apps.replies import Replies
from fedq.apps.strategy.errors import CheckpointError

if TYPE_CHECKING:
    from fedq.apps.context import Context
    from fedq.apps.strategy.result import Result
    from fedq.apps.strategy.strategy import ReplyFailure


_ROUND = "round"


class Partial(Protocol):
    """A part of an aggregation: `load` of what `save` gave makes it the same, bit for bit."""

    def save(self) -> RecordDict:
        """What it has. Arrays may be views of memory that the next reply changes: they are written at once."""

    def load(self, kept: RecordDict) -> None:
        """Take up what `save` gave. It may take the arrays out of it as it goes, so that they need not be there twice.

        Raises:
            CheckpointError: it does not read.
        """


class PlainPartial:
    """A part that JSON can hold; floats come back with the same bits.

    Args:
        get: what there is.
        put: takes up what `get` gave: tuples are lists then.
    """

    def __init__(self, get: Callable[[], object], put: Callable[[Any], None]) -> None:
        self._get = get
        self._put = put

    def save(self) -> RecordDict:
        """What there is."""
        return RecordDict({"plain": ConfigRecord({"json": json.dumps(self._get())})})

    def load(self, kept: RecordDict) -> None:
        """Take it up."""
        self._put(read_json(kept, "plain"))


class Unfinished:
    """A training round that is not over: what its aggregation has so far, and what a ServerApp that goes on from there
    must know of it. One is made for each round of a strategy with a `reply_budget`.

    Args:
        kept: what `parts` and `told` gave, of a round that was interrupted; empty for one that begins.
    """

    def __init__(self, kept: RecordDict) -> None:
        self._kept = kept
        self._parts: dict[str, Partial] = {}
        self.complete = False
        """Whether the aggregation has said what it has: otherwise it cannot be kept."""
        told = read_json(kept, _ROUND) if kept else {}
        self.rosters: list[list[str]] | None = told.get("rosters")
        self.replies: dict[str, Any] | None = told.get("replies")
        self.failures: list[dict[str, Any]] = told.get("failures", [])

    def add(self, parts: Mapping[str, Partial]) -> None:
        """Parts of the aggregation, before it has had a reply. They take up what was kept of them."""
        if twice := self._parts.keys() & parts.keys():
            raise StrategyError(
                f"the aggregation names its part {min(twice)!r} a second time: with a reply_budget the replies of a "
                "round are gone through once, and each part has a name of its own"
            )
        self._parts.update(parts)
        for name, part in parts.items():
            prefix = f"{name}."
            names = [key for key in self._kept if key.startswith(prefix)]
            if names:
                part.load(RecordDict({key.removeprefix(prefix): self._kept[key] for key in names}))

    def parts(self) -> RecordDict:
        """What the aggregation has."""
        return RecordDict(
            {f"{name}.{key}": record for name, part in self._parts.items() for key, record in part.save().items()}
        )

    def close(self) -> None:
        """The round is over: let go of what the aggregation has."""
        self._parts.clear()
        self._kept = RecordDict()

    def told(
        self, rosters: list[list[str]], replies: Mapping[str, JSON], failures: Iterable[ReplyFailure]
    ) -> RecordDict:
        """What else there is to know."""
        told = {"rosters": rosters, "replies": replies, "failures": [asdict(failure) for failure in failures]}
        return RecordDict({_ROUND: ConfigRecord({"json": json.dumps(told)})})


class RosterGrid(Grid):
    """The Grid as `configure_train` sees it in a round that may be saved unfinished. What it says of the nodes is
    noted; where the round was interrupted it is told again, so that the same messages come out, and no event twice.

    Args:
        grid: what does everything.
        noted: `rosters` of the one that was interrupted.
    """

    def __init__(self, grid: Grid, noted: list[list[str]] | None) -> None:
        self._grid = grid
        self._again = None if noted is None else iter(noted)
        self.rosters: list[list[str]] = []
        self.strategy_starts = grid.strategy_starts
        self.keeps_replies = grid.keeps_replies

    @property
    def run_id(self) -> int:
        return self._grid.run_id

    @property
    def context(self) -> Context | None:
        return self._grid.context

    def get_node_ids(self, *, online: bool | None = None) -> list[str]:
        return self._noted(lambda: self._grid.get_node_ids(online=online))

    def wait_for_nodes(self, minimum: int, *, timeout: float | None = None) -> list[str]:
        return self._noted(lambda: self._grid.wait_for_nodes(minimum, timeout=timeout))

    def _noted(self, ask: Callable[[], list[str]]) -> list[str]:
        if self._again is None:
            names = ask()
        else:
            found = next(self._again, None)
            if found is None:
                raise CheckpointError(
                    "configure_train asks for the nodes more often than before the interruption of its round; seed "
                    "what is random in it",
                    run_id=self.run_id,
                )
            names = found
        self.rosters.append(list(names))
        return names

    def emit(self, kind: str, data: Mapping[str, JSON]) -> None:
        if self._again is None:
            self._grid.emit(kind, data)

    def push_messages(self, messages: Iterable[Message], *, on_offline: OnOffline = "wait") -> list[str]:
        return self._grid.push_messages(messages, on_offline=on_offline)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return self._grid.pull_messages(message_ids)

    def cancel(self, message_ids: Iterable[str]) -> None:
        self._grid.cancel(message_ids)

    def publish(self, result: Result) -> None:
        self._grid.publish(result)

    def stream(self, messages: Iterable[Message] | None = None, **options: Any) -> Replies:
        return self._grid.stream(messages, **options)

    def _receive(self, message_ids: Any, timeout: float | None) -> list[Message]:
        return self._grid._receive(message_ids, timeout)

    def _wait_for_change(self, timeout: float) -> None:
        self._grid._wait_for_change(timeout)

    def _now(self) -> float:
        return self._grid._now()


def read_json(kept: RecordDict, name: str) -> Any:
    """What a record of `kept` holds as JSON.

    Raises:
        CheckpointError: it is not there, or does not read.
    """
    try:
        return json.loads(str(kept.config_records[name]["json"]))
    except (KeyError, ValueError) as exc:
        raise CheckpointError(
            f"the checkpoint in the midst of a round does not read ({name}: {exc!r}); start the run anew"
        ) from exc
