"""``fedq demo``: a federation on this machine, an app trained on it, and what came of it."""

from __future__ import annotations

import contextlib
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from fedq.apps.extras import MissingExtra
from fedq.apps.history import History, Round
from fedq.cli.live import NodeLine, Silent, View, columns, view_for
from fedq.cli.log import log_lines
from fedq.cli.options import Duration, debug_option, json_option
from fedq.cli.output import number, print_json, print_table
from fedq.cli.problem import Problem
from fedq.cli.values import parse_pairs

if TYPE_CHECKING:
    from fedq.cli.federation import LocalFederation
    from fedq.relay import Run

DEFAULT_OUT = Path("demo-output")


@dataclass(slots=True)
class Report:
    """What the demo has to tell when it is over."""

    run_id: int
    status: str
    nodes: int
    isolation: str
    server: str
    rounds: list[Round]
    seconds: float
    alone: float | None
    paths: dict[str, str]

    @property
    def accuracy(self) -> float | None:
        """The final accuracy."""
        return self.rounds[-1].accuracy if self.rounds else None

    @property
    def loss(self) -> float | None:
        """The final loss."""
        return self.rounds[-1].loss if self.rounds else None

    def as_json(self) -> dict[str, Any]:
        """The one object that ``--json`` prints."""
        return {
            "run_id": self.run_id,
            "status": self.status,
            "accuracy": self.accuracy,
            "loss": self.loss,
            "alone_accuracy_mean": self.alone,
            "rounds": [
                {
                    "number": ended.number,
                    "accuracy": ended.accuracy,
                    "loss": ended.loss,
                    "seconds": ended.seconds,
                    "metrics": ended.headline,
                    "replies": ended.replies,
                    "failures": ended.failures,
                }
                for ended in self.rounds
            ],
            "nodes": self.nodes,
            "isolation": self.isolation,
            "server": self.server,
            "seconds": round(self.seconds, 3),
            "paths": self.paths,
        }


@click.command()
@click.argument("app", required=False, type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--nodes", "-n", type=click.IntRange(1, 64), default=6, show_default=True, help="SuperNodes to start.")
@click.option("--rounds", type=click.IntRange(min=1), help="Rounds of training. [default: by the app's config]")
@click.option("--config", "-c", multiple=True, metavar="KEY=VALUE", help="Override the app's config.")
@click.option(
    "--isolation", type=click.Choice(["fork", "run", "inline"]), default="fork", show_default=True,
    help="How nodes isolate ClientApps.",
)  # fmt: skip
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the results. [default: demo-output]",
)
@click.option(
    "--keep", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
    help="Keep the server's data and the services' logs in DIR as well.",
)  # fmt: skip
@click.option("--timeout", type=Duration(), default="15m", show_default=True, help="Give up after this time.")
@json_option
@debug_option
def demo(
    app: Path | None,
    nodes: int,
    rounds: int | None,
    config: tuple[str, ...],
    isolation: str,
    out: Path | None,
    keep: Path | None,
    timeout: float,
    as_json: bool,
) -> None:
    """Train an app on a private federation of this machine, and watch it live.

    Starts a server, a SuperLink and six SuperNodes as processes of their own, submits the project directory APP (by
    default handwritten digits, split unevenly over the nodes), and ends all of it again.
    """
    began = time.monotonic()
    project = app if app is not None else digits_app()
    standard = {"min-nodes": nodes} if app is None else {}
    target = out if out is not None else keep / "results" if keep is not None else DEFAULT_OUT
    overrides: dict[str, Any] = {**standard, **parse_pairs(config, "--config")}
    if rounds is not None:
        overrides["num-rounds"] = rounds
    with terminated_by_signals():
        report, history = train(
            project,
            nodes=nodes,
            isolation=isolation,
            overrides=overrides,
            target=target,
            keep=keep,
            timeout=timeout,
            quiet=as_json,
            began=began,
        )
    if as_json:
        print_json(report.as_json())
    else:
        show(report, history)


def train(
    project: Path,
    *,
    nodes: int,
    isolation: str,
    overrides: dict[str, Any],
    target: Path,
    keep: Path | None,
    timeout: float,
    quiet: bool,
    began: float,
) -> tuple[Report, History]:
    """Start everything, train, write the results, end everything; in that order, whatever happens in between."""
    from fedq.cli.federation import LocalFederation
    from fedq.cli.follow import follow, require_finished
    from fedq.relay import SuperLink
    from fedq.relay.project import merged_config, read_project

    # A mistake in the project is told before anything is started.
    merged_config(read_project(project).config, overrides)
    federation = LocalFederation(nodes=nodes, directory=keep, isolation=isolation)
    # With --json stdout is for the result, and stderr for a person, if there is one.
    stream = sys.stderr if quiet else sys.stdout
    title = f"{project.resolve().name} on {nodes} nodes"
    view: View
    if quiet and not stream.isatty():
        view = Silent()
    else:
        view = view_for(title, stream=stream, nodes=lambda: node_lines(federation))
    with contextlib.ExitStack() as showing:
        showing.enter_context(view)
        view.say(f"starting a private server, a SuperLink and {nodes} SuperNodes")
        with federation:
            view.say(f"server: {federation.server}")
            for count in federation.wait_until_online():
                view.say(f"{count} of {nodes} nodes online")
            with SuperLink.connect(federation.url) as link:
                run = link.submit(str(project), config=overrides)
                view.say(f"run {run.run_id}: {project.resolve().name} submitted")
                try:
                    follow(run, view, timeout=timeout)
                    # The last picture is of nodes at work, not of nodes that are being ended.
                    showing.close()
                    require_finished(run)
                except Problem as problem:
                    raise with_log(problem, run, target / "run.log") from problem
                history = view.history
                report = Report(
                    run_id=run.run_id,
                    status=run.info().status,
                    nodes=nodes,
                    isolation=isolation,
                    server=federation.server,
                    rounds=history.trained,
                    seconds=0.0,
                    alone=alone_accuracy(history),
                    paths={},
                )
                report.paths = write_results(run, report, history, target, title)
            if keep is not None:
                report.paths["server"] = str(keep)
    report.seconds = time.monotonic() - began
    return report, history


def with_log(problem: Problem, run: Run, path: Path) -> Problem:
    """The problem, with the place of the run's log: the federation that `fedq log` would ask is about to end."""
    lines = list(log_lines(run))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Problem(f"{problem.message.split('; fedq log')[0]}; its log is in {path}")


def write_results(run: Run, report: Report, history: History, target: Path, title: str) -> dict[str, str]:
    """Write model, history and plot into ``target``; returns their paths."""
    from fedq.cli.results import write_arrays, write_json

    result = run.result(timeout=30)
    paths = {"model": target / "model.npz", "history": target / "history.json"}
    write_arrays(result.arrays, paths["model"])
    history.take(result)
    told = {name: value for name, value in report.as_json().items() if name not in ("paths", "rounds", "seconds")}
    write_json({**told, **history.to_dict()}, paths["history"])
    plot = target / "convergence.png"
    alone = {} if report.alone is None else {"accuracy": (report.alone, "trained alone (mean)")}
    try:
        if history.names:
            history.plot(plot, title=title, baselines=alone)
    except MissingExtra:
        click.echo('no plot: matplotlib is not installed; pip install "fedq[demo]" brings it', err=True)
    if plot.exists():
        paths["plot"] = plot
    return {name: str(path) for name, path in paths.items()}


def alone_accuracy(history: History) -> float | None:
    """The mean accuracy of models that nodes trained alone, if the app tells it (a metric with "alone" in its name)."""
    for metrics in (history.app_metrics, *(ended.headline for ended in reversed(history.rounds))):
        for name, value in metrics.items():
            if "alone" in name and "accuracy" in name:
                return value
    return None


def node_lines(federation: LocalFederation) -> list[NodeLine]:
    """The nodes and what they do at this moment, for the live picture."""
    from fedq.relay.claims import read_claims
    from fedq.relay.connection import Relay
    from fedq.relay.nodes import node_names, online

    lines: list[NodeLine] = []
    with Relay.connect(federation.url, client_name="fedq-demo-nodes") as relay:
        alive = online(relay, node_names(relay))
        for name in federation.node_names:
            busy = bool(read_claims(relay, name)) if alive.get(name) else False
            state = "online" if alive.get(name) else "offline" if name in alive else "starting"
            lines.append(NodeLine(name, state, "working" if busy else ""))
    return lines


def show(report: Report, history: History) -> None:
    """The closing words: a table, the comparison, where things are, and how to go on."""
    click.echo("")
    names = columns(report.rounds[-1].headline) if report.rounds else []
    print_table(
        ["ROUND", *(name.upper() for name in names), "SECONDS", "REPLIES", "FAILED"],
        [
            [
                ended.number,
                *(number(ended.headline[name]) if name in ended.headline else None for name in names),
                None if ended.seconds is None else f"{ended.seconds:.2f}",
                ended.replies,
                ended.failures,
            ]
            for ended in report.rounds
        ],
        empty="the app reported no rounds",
    )
    click.echo("")
    click.echo(
        f"run {report.run_id} {report.status}: {len(report.rounds)} rounds on {report.nodes} nodes, "
        f"{report.seconds:.1f} s with everything started and ended"
    )
    if report.accuracy is not None:
        click.echo(f"  accuracy of the federated model   {number(report.accuracy)}")
    if report.alone is not None:
        click.echo(f"  mean of models trained alone      {number(report.alone)}")
    words = {"plot": "convergence plot", "model": "final model", "history": "history", "server": "server and logs"}
    for name in ("plot", "model", "history", "server"):
        if name in report.paths:
            click.echo(f"  {words[name]:<33} {report.paths[name]}")
    click.echo("")
    click.echo("go on with:")
    command = own_command()
    width = len(f"{command} demo my-app")
    for what, remark in (("new my-app", "writes an app of your own"), ("demo my-app", "and watches it train here")):
        click.echo(f"  {f'{command} {what}':<{width}}   # {remark}")


def own_command() -> str:
    """How the user calls this program: ``fedq``, or its path where it is not on the PATH."""
    script = Path(sys.argv[0]).with_name("fedq")
    if shutil.which("fedq") and Path(str(shutil.which("fedq"))).resolve() == script.resolve():
        return "fedq"
    with contextlib.suppress(ValueError):
        return str(script.absolute().relative_to(Path.cwd()))
    return str(script)


def digits_app() -> Path:
    """The project directory of the digits app, in a clone or in the installed package."""
    missing = [name for name in ("sklearn", "matplotlib") if not _installed(name)]
    if missing:
        raise Problem('the digits app needs scikit-learn and matplotlib: pip install "fedq[embedded,demo]"')
    for folder in import_module("fedq.examples").__path__:
        if (Path(folder) / "digits" / "pyproject.toml").is_file():
            return Path(folder) / "digits"
    raise Problem("the digits app is not in this installation; name an app: fedq demo DIRECTORY")


def _installed(name: str) -> bool:
    return find_spec(name) is not None


@contextlib.contextmanager
def terminated_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block like Ctrl-C does, so that everything started is ended."""

    def end(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
