"""``fedq pull RUN``: final arrays and history as files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedq.cli.options import debug_option, json_option, redis_option
from fedq.cli.output import print_json
from fedq.cli.problem import Problem

if TYPE_CHECKING:
    from fedq.relay import Run, RunInfo

FORMATS = ("csv", "json")


@click.command()
@click.argument("run_id", type=int, metavar="RUN")
@click.option(
    "--out", "-o", type=click.Path(path_type=Path, file_okay=False), help="Folder to write to. [default: run-RUN]"
)
@click.option(
    "--format", "formats", multiple=True, type=click.Choice(FORMATS), help="How to write the history. [default: both]"
)
@click.option("--plot", is_flag=True, help="Draw the history as history.png too (needs matplotlib).")
@click.option("--no-arrays", is_flag=True, help="The history alone; also of a run that has not finished.")
@click.option("--force", is_flag=True, help="Write over files that are there.")
@redis_option
@json_option
@debug_option
def pull(
    run_id: int,
    out: Path | None,
    formats: tuple[str, ...],
    plot: bool,
    no_arrays: bool,
    force: bool,
    redis_url: str | None,
    as_json: bool,
) -> None:
    """Write the final arrays of RUN as arrays.npz, and its metrics by round as history.csv and history.json."""
    from fedq.relay import SuperLink

    target = out if out is not None else Path(f"run-{run_id}")
    paths = {} if no_arrays else {"arrays": target / "arrays.npz"}
    paths |= {name: target / f"history.{name}" for name in FORMATS if name in (formats or FORMATS)}
    if plot:
        paths["plot"] = target / "history.png"
    there = [str(path) for path in paths.values() if path.exists()]
    if there and not force:
        raise Problem(f"{there[0]} is there already; choose another folder with -o, or add --force")
    with SuperLink.connect(redis_url) as link:
        run = link.run(run_id)
        if not no_arrays:
            _require_result(run.info())
        write_files(run, paths)
    if as_json:
        print_json({"run_id": run_id, "paths": {name: str(path) for name, path in paths.items()}})
    else:
        for path in paths.values():
            click.echo(f"wrote {path}")


def _require_result(info: RunInfo) -> None:
    if not info.over:
        raise Problem(
            f"run {info.run_id} is {info.status}: there is no result yet; wait with fedq log -f {info.run_id}, "
            "or add --no-arrays"
        )
    if info.status != "finished":
        reason = f": {info.reason.rstrip('.')}" if info.reason else ""
        raise Problem(
            f"run {info.run_id} {info.status}{reason}; it has no result (fedq log {info.run_id} tells more, "
            "--no-arrays writes its history)"
        )


def write_files(run: Run, paths: dict[str, Path]) -> None:
    """Write what ``paths`` names (``arrays``, ``csv``, ``json``, ``plot``) of a run that is over."""
    from fedq.cli.results import write_arrays, write_json

    history, info = run.history(), run.info()
    result = run.result(timeout=0) if "arrays" in paths else None
    if result is not None:
        history.take(result)
    title = f"run {run.run_id}" + (f", {info.name}" if info.name else "")
    # What can fail for want of a package comes first: then nothing is written.
    if "plot" in paths:
        history.plot(paths["plot"], title=title)
    if result is not None:
        write_arrays(result.arrays, paths["arrays"])
    if "csv" in paths:
        history.to_csv(paths["csv"])
    if "json" in paths:
        about: dict[str, Any] = {
            "run_id": run.run_id,
            "name": info.name,
            "status": info.status,
            "reason": info.reason,
            "seconds": max(0.0, info.ended - info.started) if info.over and info.started else None,
            "attempts": info.attempt,
            "config": run.config,
        }
        write_json({**about, **history.to_dict()}, paths["json"])
