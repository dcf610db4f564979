"""``fedq run APP``: submit an app, and follow it if asked."""

from __future__ import annotations

import sys
from typing import Any

import click

from fedq.cli.connect import relay, require_keeping
from fedq.cli.live import Silent, View, view_for
from fedq.cli.options import Duration, debug_option, json_option, redis_option, track_option
from fedq.cli.output import print_json
from fedq.cli.track import trackers_of, tracking
from fedq.cli.values import parse_labels, parse_pairs


@click.command()
@click.argument("app", required=False)
@click.argument("client_app", required=False)
@click.option("--resume", type=int, metavar="RUN", help="Instead of an APP: go on with a failed run.")
@click.option(
    "--config",
    "-c",
    "config",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override the app's config, typed as in TOML; or the name of a .toml file. Repeat for more.",
)
@click.option("--node-label", "-l", "labels", multiple=True, metavar="LABEL=VALUE", help="Only nodes with this label.")
@click.option("--name", help="A name for the run. [default: the app's]")
@click.option("--follow/--detach", "-f", default=False, help="Show the rounds until the run is over. [default: detach]")
@click.option("--timeout", type=Duration(), help="With --follow: wait no longer than this.")
@track_option
@click.option("--time-limit", type=Duration(), help="Most time for one message on a node.")
@click.option("--max-deliveries", type=click.IntRange(min=1), help="Tries for a message whose worker dies.")
@click.option("--max-attempts", type=click.IntRange(min=1), help="Starts of a ServerApp that dies, per checkpoint.")
@click.option(
    "--durability",
    type=click.Choice(["none", "replay"]),
    help="For a ServerApp that never saves a checkpoint: fail when interrupted, or keep all answers and run again.",
)
@click.option(
    "--sign-key",
    "signing_key",
    type=click.Path(exists=True, dir_okay=False),
    help="File with the Ed25519 private key to sign the app with.",
)
@redis_option
@json_option
@debug_option
def run(
    app: str | None,
    client_app: str | None,
    resume: int | None,
    config: tuple[str, ...],
    labels: tuple[str, ...],
    name: str | None,
    follow: bool,
    timeout: float | None,
    track: tuple[str, ...],
    redis_url: str | None,
    as_json: bool,
    **limits: Any,
) -> None:
    """Submit APP to the federation.

    APP is a project directory with [tool.fedq.app], or Flower's [tool.flwr.app], in its pyproject.toml; or two words:
    the ServerApp and the ClientApp as module:object. With --follow the exit code is 0 only if the run has finished.

    --resume RUN lets a run that failed go on from its last checkpoint, as long as its superlink keeps what that needs.
    """
    chosen = {key: value for key, value in limits.items() if value is not None}
    if (app is None) == (resume is None):
        raise click.UsageError("name an APP, or a run with --resume")
    if resume is not None and (config or labels or name or chosen):
        raise click.UsageError(
            "a run is resumed as it was submitted; leave out everything but --follow, --timeout and --track"
        )
    if timeout is not None and not follow:
        raise click.UsageError("--timeout needs --follow")
    if track and not follow:
        raise click.UsageError("--track needs --follow, since the metrics are written from here as they arrive")
    overrides = parse_pairs(config, "--config")
    selector = parse_labels(labels, "--node-label")

    trackers = trackers_of(track)

    from fedq.cli.follow import follow as follow_run
    from fedq.cli.follow import require_finished
    from fedq.relay import SuperLink

    # A server that is not there is told before the app is packed.
    with relay(redis_url) as handle:
        require_keeping(handle)
    with SuperLink.connect(redis_url) as link:
        if app is None:
            assert resume is not None
            submitted, verb = link.run(resume), "is resumed"
            submitted.resume()
        else:
            submitted = link.submit(app, client_app, config=overrides, nodes=selector, name=name, **chosen)
            verb = "is submitted"
        number = submitted.run_id
        if not follow:
            if as_json:
                print_json({"run_id": number, "status": submitted.info().status})
            else:
                click.echo(f"run {number} {verb}; follow it with fedq log -f {number}")
            return
        stream = sys.stderr if as_json else sys.stdout
        view: View = Silent() if as_json else view_for(f"run {number}", stream=stream)
        try:
            with view:
                view.say(f"run {number} {verb}")
                with tracking(submitted, trackers, view.say) as feed:
                    follow_run(submitted, view, timeout=timeout, also=feed)
        except KeyboardInterrupt:
            click.echo(f"run {number} goes on; stop it with fedq stop {number}", err=True)
            raise
        info = submitted.info()
        if as_json:
            print_json(
                {
                    "run_id": number,
                    "status": info.status,
                    "reason": info.reason,
                    "rounds": [
                        {"number": ended.number, "seconds": ended.seconds, "metrics": ended.headline}
                        for ended in view.history.trained
                    ],
                }
            )
        require_finished(submitted)
        if not as_json:
            click.echo(f"run {number} finished; fedq pull {number} writes its arrays and metrics to files")
