"""Following a run: a live picture on a terminal, plain lines everywhere else."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TextIO

import click

from fedq.apps.history import History, Round
from fedq.cli.output import number

if TYPE_CHECKING:
    from rich.console import RenderableType


FIRST = ("accuracy", "loss")
"""Metrics that are shown before the others."""

MOST_COLUMNS = 4


@dataclass(frozen=True, slots=True)
class NodeLine:
    """A node as the picture shows it."""

    name: str
    state: str
    doing: str = ""


class View(Protocol):
    """Where the progress of a run is shown."""

    @property
    def history(self) -> History:
        """The rounds so far."""
        ...

    def say(self, text: str) -> None:
        """A step that has nothing to do with rounds."""

    def event(self, kind: str, data: Mapping[str, Any]) -> None:
        """One event of the run."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def view_for(title: str, *, stream: TextIO, nodes: Callable[[], Sequence[NodeLine]] | None = None) -> View:
    """The picture if ``stream`` is a terminal that can show it, else lines."""
    if stream.isatty() and (stream.encoding or "").lower().startswith("utf"):
        return Picture(title, stream, nodes)
    return Lines(stream)


def columns(metrics: Mapping[str, float]) -> list[str]:
    """The names of the metrics to show, in their order."""
    first = [name for name in FIRST if name in metrics]
    return [*first, *(name for name in metrics if name not in first)][:MOST_COLUMNS]


def describe_round(ended: Round, total: int | None) -> str:
    """One line about a round."""
    width = len(str(total or ended.number))
    words = [f"round {ended.number:>{width}}" + (f"/{total}" if total else "")]
    metrics = ended.headline
    words += [f"{name} {number(metrics[name])}" for name in columns(metrics)]
    if ended.seconds is not None:
        words.append(f"{ended.seconds:.2f} s")
    if ended.replies is not None:
        words.append(f"{ended.replies} replies")
    if ended.failures:
        words.append(f"{ended.failures} failed")
    if ended.unanswered:
        words.append(f"{ended.unanswered} unanswered")
    return "  ".join(words)


def describe_event(kind: str, data: Mapping[str, Any]) -> str | None:
    """One line about an event that is no round; None for those that need no line."""
    if kind == "status":
        reason = data.get("reason") or data.get("detail")
        return f"{data.get('status')}" + (f": {reason}" if reason else "")
    if kind == "waiting-for-nodes":
        return f"waiting for nodes: {data.get('text')}"
    if kind == "reply-failed":
        return f"left out: {data.get('node')}, round {data.get('round')}: {data.get('reason')}"
    if kind == "warning":
        return f"warning: {data.get('text') or data.get('message')}"
    if kind == "metric":
        return f"{data.get('name')} {number(data.get('value'))}"
    return None


class Lines:
    """Plain lines on a stream, one for each round and for what is out of the ordinary."""

    def __init__(self, stream: TextIO) -> None:
        self.history = History()
        self._stream = stream

    def say(self, text: str) -> None:
        click.echo(text, file=self._stream)
        self._stream.flush()

    def event(self, kind: str, data: Mapping[str, Any]) -> None:
        ended = self.history.feed(kind, data)
        if kind == "round" and ended is not None:
            self.say(describe_round(ended, self.history.total))
        elif line := describe_event(kind, data):
            self.say(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class Silent(Lines):
    """Keeps the history and shows nothing."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def say(self, text: str) -> None:
        return None


class Picture:
    """A live picture: a progress bar, the rounds, the nodes and the newest remarks."""

    ROUNDS = 12
    REMARKS = 5
    REFRESH = 8

    def __init__(self, title: str, stream: TextIO, nodes: Callable[[], Sequence[NodeLine]] | None = None) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self.history = History()
        self._title = title
        self._nodes = nodes
        self._node_lines: Sequence[NodeLine] = ()
        self._remarks: list[str] = []
        self._status = ""
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._console = Console(file=stream)
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.completed:.0f}/{task.total:.0f} rounds"),
            TimeElapsedColumn(),
            console=self._console,
        )
        self._task = self._progress.add_task(title, total=0)
        self._live = Live(
            console=self._console, get_renderable=self._render, refresh_per_second=self.REFRESH, transient=False
        )
        self._watcher: threading.Thread | None = None

    def say(self, text: str) -> None:
        with self._lock:
            self._remarks = [*self._remarks, text][-self.REMARKS :]

    def event(self, kind: str, data: Mapping[str, Any]) -> None:
        with self._lock:
            self.history.feed(kind, data)
            if kind == "status":
                self._status = str(data.get("status"))
            total = self.history.total or 0
            done = self.history.last.number if self.history.last else 0
        self._progress.update(self._task, total=total or done, completed=done)
        if kind not in ("round", "status") and (line := describe_event(kind, data)):
            self.say(line)

    def __enter__(self) -> Self:
        self._live.start()
        if self._nodes is not None:
            self._watcher = threading.Thread(target=self._watch, name="node-watch", daemon=True)
            self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        if self._watcher is not None:
            self._watcher.join(timeout=5)
        self._live.stop()

    def _watch(self) -> None:
        assert self._nodes is not None
        while not self._done.wait(0.4):
            try:
                lines = self._nodes()
            except Exception:
                # Only the picture of the nodes depends on it; the run's own fate is told by its events.
                continue
            with self._lock:
                self._node_lines = lines

    def _render(self) -> RenderableType:
        from rich.columns import Columns
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        with self._lock:
            history, nodes, remarks, status = self.history, self._node_lines, list(self._remarks), self._status
            rounds = history.trained[-self.ROUNDS :]
        parts: list[RenderableType] = [self._progress]
        names = columns(rounds[-1].headline) if rounds else ["accuracy", "loss"]
        table = Table(box=None, pad_edge=False, header_style="dim")
        for heading in ("round", *names, "seconds", "replies"):
            table.add_column(heading, justify="right")
        for ended in rounds:
            metrics = ended.headline
            table.add_row(
                str(ended.number),
                *(number(metrics[name]) if name in metrics else "-" for name in names),
                f"{ended.seconds:.2f}" if ended.seconds is not None else "-",
                f"{ended.replies}" + (f" ({ended.failures} failed)" if ended.failures else ""),
            )
        side = Table(box=None, pad_edge=False, header_style="dim")
        for heading in ("node", "state", ""):
            side.add_column(heading)
        colours = {"online": "green", "offline": "red", "starting": "yellow"}
        for node in nodes:
            side.add_row(node.name, Text(node.state, style=colours.get(node.state, "")), node.doing)
        parts.append(Columns([table, side], padding=(0, 6)) if nodes else table)
        parts += [Text(f"  {remark}", style="dim", overflow="ellipsis", no_wrap=True) for remark in remarks]
        if status:
            parts.append(Text(f"  run is {status}", style="dim"))
        return Group(*parts)
