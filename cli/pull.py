"""``fedq pull RUN``: final arrays and metrics as files."""

from __future__ import annotations

from pathlib import Path

import click

from fedq.cli.options import debug_option, json_option, redis_option
from fedq.cli.output import print_json
from fedq.cli.problem import Problem


@click.command()
@click.argument("run_id", type=int, metavar="RUN")
@click.option(
    "--out", "-o", type=click.Path(path_type=Path, file_okay=False), help="Folder to write to. [default: run-RUN]"
)
@click.option("--force", is_flag=True, help="Write over files that are there.")
@redis_option
@json_option
@debug_option
def pull(run_id: int, out: Path | None, force: bool, redis_url: str | None, as_json: bool) -> None:
    """Write the final arrays of RUN as arrays.npz and its metrics as metrics.json."""
    from fedq.cli.results import metrics_of, write_arrays, write_json
    from fedq.relay import SuperLink

    target = out if out is not None else Path(f"run-{run_id}")
    paths = {"arrays": target / "arrays.npz", "metrics": target / "metrics.json"}
    there = [str(path) for path in paths.values() if path.exists()]
    if there and not force:
        raise Problem(f"{there[0]} is there already; choose another folder with -o, or add --force")
    with SuperLink.connect(redis_url) as link:
        run = link.run(run_id)
        info = run.info()
        if not info.over:
            raise Problem(f"run {run_id} is {info.status}: there is no result yet; wait with fedq log -f {run_id}")
        if info.status != "finished":
            reason = f": {info.reason.rstrip('.')}" if info.reason else ""
            raise Problem(f"run {run_id} {info.status}{reason}; it has no result (fedq log {run_id} tells more)")
        result = run.result(timeout=0)
    write_arrays(result.arrays, paths["arrays"])
    document = {
        "run_id": run_id,
        "name": info.name,
        "status": info.status,
        "seconds": result.seconds,
        "attempts": result.attempts,
        "config": dict(result.config),
        **metrics_of(result),
    }
    write_json(document, paths["metrics"])
    if as_json:
        print_json({"run_id": run_id, "paths": {name: str(path) for name, path in paths.items()}})
    else:
        for path in paths.values():
            click.echo(f"wrote {path}")
