"""``fedq simulate APP``: an app on many virtual nodes of this machine, or of several, and what came of it."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedq.cli.demo import own_command, terminated_by_signals, with_log
from fedq.cli.live import Silent, View, view_for
from fedq.cli.options import Duration, debug_option, json_option
from fedq.cli.output import print_json
from fedq.cli.problem import Problem
from fedq.cli.values import parse_pairs

if TYPE_CHECKING:
    from fedq.apps.history import History
    from fedq.cli.simulation import LocalSimulation
    from fedq.relay import Run

DEFAULT_OUT = Path("simulation-output")


@click.command()
@click.argument("app")
@click.argument("client_app", required=False)
@click.option("--nodes", "-n", type=click.IntRange(min=1), default=10, show_default=True, help="Virtual nodes.")
@click.option(
    "--workers",
    "-w",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    help="ClientApps at a time, each a process.",
)
@click.option(
    "--config", "-c", multiple=True, metavar="KEY=VALUE",
    help="Override the app's config, typed as in TOML; or the name of a .toml file. Repeat for more.",
)  # fmt: skip
@click.option(
    "--node-config", multiple=True, metavar="KEY=VALUE",
    help="node_config of every node, beside partition-id and num-partitions.",
)  # fmt: skip
@click.option(
    "--isolation", type=click.Choice(["fork", "run", "inline"]), default="run", show_default=True,
    help="A process for each job of some messages, one kept by each worker, or the worker itself.",
)  # fmt: skip
@click.option("--time-limit", type=Duration(), help="Most time for one message.")
@click.option("--max-deliveries", type=click.IntRange(min=1), help="Tries for a message whose worker dies.")
@click.option("--timeout", type=Duration(), help="Give up after this time.")
@click.option("--name", default="node", show_default=True, help="The nodes are called NAME-0, NAME-1, and so on.")
@click.option(
    "--redis-url", "-r", metavar="URL",
    help="Use this server, so that workers of other machines can join. [default: a private one]",
)  # fmt: skip
@click.option(
    "--out", "-o", type=click.Path(path_type=Path, file_okay=False), default=DEFAULT_OUT, show_default=True,
    help="Folder of the results.",
)  # fmt: skip
@click.option(
    "--keep", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
    help="Keep the private server's data and the services' logs in DIR.",
)  # fmt: skip
@json_option
@debug_option
def simulate(
    app: str,
    client_app: str | None,
    nodes: int,
    workers: int,
    config: tuple[str, ...],
    node_config: tuple[str, ...],
    isolation: str,
    timeout: float | None,
    name: str,
    redis_url: str | None,
    out: Path,
    keep: Path | None,
    as_json: bool,
    **limits: Any,
) -> None:
    """Run APP with virtual nodes, watch it, and write what it leaves to files.

    APP is a project directory, or two words: the ServerApp and the ClientApp as module:object, as for fedq run. Nodes
    are numbered by partition-id, of num-partitions, in their node_config. With equal seeds the final arrays are those
    of a deployment with nodes of the same names.

    Starts a private server, a SuperLink and workers, and ends all of it again. With --redis-url any machine adds
    workers to a simulation that goes on: fedq worker --node NAME --isolation run --slots 8 --redis-url URL
    """
    from fedq.cli.simulation import LocalSimulation

    began = time.monotonic()
    overrides = parse_pairs(config, "--config")
    simulation = LocalSimulation(
        nodes=nodes,
        directory=keep,
        isolation=isolation,
        slots=workers,
        name=name,
        redis_url=redis_url,
        config=parse_pairs(node_config, "--node-config"),
        keep=keep is not None,
    )
    # With --json stdout is for the result, and stderr for a person, if there is one.
    stream = sys.stderr if as_json else sys.stdout
    title = f"{_title(app)} on {nodes} virtual nodes"
    view: View = Silent() if as_json and not stream.isatty() else view_for(title, stream=stream)
    chosen = {key: value for key, value in limits.items() if value is not None}
    with terminated_by_signals():
        report = _run(simulation, view, app, client_app, overrides, chosen, timeout, out)
    report["seconds"] = round(time.monotonic() - began, 3)
    if as_json:
        print_json(report)
        return
    click.echo(
        f"run {report['run_id']} finished: {len(report['rounds'])} rounds on {nodes} virtual nodes, "
        f"{report['seconds']:.1f} s with everything started and ended"
    )
    for path in report["paths"].values():
        click.echo(f"wrote {path}")


def _run(
    simulation: LocalSimulation,
    view: View,
    app: str,
    client_app: str | None,
    overrides: dict[str, Any],
    limits: dict[str, Any],
    timeout: float | None,
    out: Path,
) -> dict[str, Any]:
    """Start everything, run, write the results, end everything; in that order, whatever happens in between."""
    from fedq.cli.follow import follow, require_finished
    from fedq.relay import SuperLink

    with contextlib.ExitStack() as showing:
        showing.enter_context(view)
        kind = "a SuperLink" if simulation.redis_url else "a private server, a SuperLink"
        view.say(f"starting {kind} and {simulation.slots} workers for {simulation.nodes} virtual nodes")
        with simulation:
            for _ in simulation.wait_until_online():
                pass
            if simulation.redis_url:
                view.say(f"more workers join with: {own_command()} worker --node {simulation.name} --isolation run")
            with SuperLink.connect(simulation.url) as link:
                run = link.submit(app, client_app, config=overrides, nodes=simulation.selector, **limits)
                simulation.run = run
                view.say(f"run {run.run_id}: {run.info().name} submitted")
                try:
                    follow(run, view, timeout=timeout)
                    require_finished(run)
                except Problem as problem:
                    raise with_log(problem, run, out / "run.log") from problem
                finally:
                    showing.close()
                return _report(simulation, run, view.history, out)


def _report(simulation: LocalSimulation, run: Run, history: History, out: Path) -> dict[str, Any]:
    """Write arrays and history as ``fedq pull`` does; what there is to tell."""
    from fedq.cli.pull import write_files

    paths = {"arrays": out / "arrays.npz", "csv": out / "history.csv", "json": out / "history.json"}
    write_files(run, paths)
    return {
        "run_id": run.run_id,
        "status": run.info().status,
        "rounds": [
            {
                "number": ended.number,
                "seconds": ended.seconds,
                "metrics": dict(ended.headline),
                "replies": ended.replies,
                "failures": ended.failures,
            }
            for ended in history.rounds
        ],
        "nodes": simulation.nodes,
        "workers": simulation.slots,
        "isolation": simulation.isolation,
        "server": simulation.server,
        "seconds": 0.0,
        "paths": {name: str(path) for name, path in paths.items()},
    }


def _title(app: str) -> str:
    return Path(app).resolve().name if Path(app).is_dir() else app
