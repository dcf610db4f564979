"""``fedq doctor``: what is wrong with the server and the federation, and how to mend it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Literal
from urllib.parse import urlsplit

import click

from fedq.cli.options import debug_option, json_option, redis_option
from fedq.cli.orphans import Census, remove, take_census
from fedq.cli.output import print_json, size, span
from fedq.cli.problem import Problem
from fedq.relay import links
from fedq.relay.connection import Relay, ServerInfo
from fedq.relay.errors import RelayError
from fedq.relay.keys import PREFIX
from fedq.relay.nodes import list_nodes
from fedq.relay.objects import FULL_AT
from fedq.relay.runs import list_runs
from fedq.relay.texts import text

Level = Literal["ok", "warning", "serious"]
COLOURS: dict[Level, str] = {"ok": "green", "warning": "yellow", "serious": "red"}

OLDEST = (7, 0)
"""The first version whose access rules and stream commands the relay can use."""

CVE_2026_23479 = ((7, 2, 0), (8, 6, 2))
"""Redis releases with the fault in blocking commands, first and last."""

SKEW_WARNING, SKEW_SERIOUS = 2.0, 60.0
"""Seconds between this machine's clock and the server's."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. ``remedy`` is empty when it is well."""

    level: Level
    subject: str
    text: str
    remedy: str = ""


@click.command()
@click.option("--remove-orphans", is_flag=True, help="Delete the orphaned keys that were found.")
@redis_option
@json_option
@debug_option
def doctor(remove_orphans: bool, redis_url: str | None, as_json: bool) -> None:
    """Examine the server and the federation; say what to mend and how. Exits with 1 if a finding is serious."""
    with Relay.connect(redis_url, client_name="fedq-doctor", retries=1) as relay:
        findings = examine(relay, remove_orphans=remove_orphans)
    if as_json:
        print_json({"findings": [asdict(finding) for finding in findings], "worst": worst(findings)})
    else:
        for finding in findings:
            click.echo(
                f"{click.style(f'{finding.level:<8}', fg=COLOURS[finding.level])} {finding.subject}: {finding.text}"
            )
            if finding.remedy:
                click.echo(f"{'':<8} -> {finding.remedy}")
    serious = [finding for finding in findings if finding.level == "serious"]
    if serious:
        more = f" (and {len(serious) - 1} more)" if len(serious) > 1 else ""
        raise Problem(f"{serious[0].subject}: {serious[0].text}{more}; {serious[0].remedy}")


def worst(findings: list[Finding]) -> Level:
    """The gravest level among ``findings``."""
    levels = {finding.level for finding in findings}
    return "serious" if "serious" in levels else "warning" if "warning" in levels else "ok"


def examine(relay: Relay, *, remove_orphans: bool = False) -> list[Finding]:
    """Every finding, the server's first. A server that does not answer is a finding too, and the only one."""
    try:
        server = relay.check()
    except RelayError as error:
        return [Finding("serious", "server", "it cannot be used", str(error))]
    findings = [
        *check_server(server),
        *check_durability(server),
        *check_memory(server, relay),
        *check_access(relay),
        check_clock(relay),
    ]
    for look in (check_prefix, check_federation):
        findings += _carefully(look, relay)
    try:
        census = take_census(relay)
        findings.append(check_orphans(census))
        if remove_orphans and census.orphans:
            count = remove(relay, census.orphans)
            findings[-1] = Finding("ok", "orphaned keys", f"{count} of {len(census.orphans)} removed")
    except RelayError as error:
        findings.append(Finding("warning", "orphaned keys", "could not be looked for", str(error)))
    return findings


def _carefully(look: Callable[[Relay], Iterator[Finding]], relay: Relay) -> list[Finding]:
    """What ``look`` finds; a user whose rights do not suffice for it learns that."""
    try:
        return list(look(relay))
    except RelayError as error:
        return [Finding("warning", look.__name__.removeprefix("check_"), "could not be examined", str(error))]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def check_server(server: ServerInfo) -> Iterator[Finding]:
    """Kind, version and role."""
    name, numbers = f"{server.kind} {server.version}", _numbers(server.version)
    first, last = CVE_2026_23479
    if numbers < OLDEST:
        yield Finding("serious", "server", f"{name} is too old", "install Redis 7.0 or later, or Valkey")
    elif server.kind == "redis" and first <= numbers <= last:
        yield Finding(
            "warning",
            "server",
            f"{name} has CVE-2026-23479, a fault in blocking commands",
            "upgrade to Redis 8.6.3 or later, or to Valkey; until then let only trusted nodes connect",
        )
    else:
        yield Finding("ok", "server", name)
    if server.role != "master":
        yield Finding(
            "serious", "role", "this server is a replica and accepts no writes", "use the address of its primary"
        )


def check_durability(server: ServerInfo) -> Iterator[Finding]:
    """Whether acknowledged messages survive a restart."""
    if not server.aof:
        yield Finding(
            "serious",
            "append-only file",
            "off: a restart of the server forgets runs and messages",
            "CONFIG SET appendonly yes, and `appendonly yes` in the server's configuration file",
        )
    elif server.fsync == "no":
        yield Finding(
            "warning",
            "append-only file",
            "appendfsync is no: a power cut can lose many seconds",
            "CONFIG SET appendfsync everysec (or always, which loses nothing)",
        )
    elif server.fsync == "always":
        yield Finding("ok", "append-only file", "on, fsync always: nothing acknowledged is lost")
    else:
        yield Finding("ok", "append-only file", f"on, fsync {server.fsync or 'unknown'}: a crash loses about a second")


def check_memory(server: ServerInfo, relay: Relay) -> Iterator[Finding]:
    """The eviction policy, the limit, and how near it is."""
    if server.policy != "noeviction":
        yield Finding(
            "serious",
            "eviction policy",
            f"{server.policy}: when memory is short the server throws messages away",
            "CONFIG SET maxmemory-policy noeviction, and the same in the server's configuration file",
        )
    else:
        yield Finding("ok", "eviction policy", "noeviction")
    used, limit = relay.memory()
    if not limit:
        yield Finding(
            "warning",
            "memory",
            f"{size(used)} in use, and no limit: a run that is too large takes the machine's",
            "CONFIG SET maxmemory <bytes>; new messages then stop at 75 % of it with a clear error",
        )
    elif used >= FULL_AT * limit:
        yield Finding(
            "serious",
            "memory",
            f"{size(used)} of {size(limit)} in use: new messages are refused",
            "raise maxmemory, or free some with fedq runs prune --older-than 0",
        )
    elif used >= 0.6 * limit:
        yield Finding(
            "warning",
            "memory",
            f"{size(used)} of {size(limit)} in use; new messages stop at 75 %",
            "raise maxmemory, or free some with fedq runs prune",
        )
    else:
        yield Finding("ok", "memory", f"{size(used)} of {size(limit)} in use")


def check_access(relay: Relay) -> Iterator[Finding]:
    """A server that anybody on the network may use."""
    parts = urlsplit(relay.url)
    host = parts.hostname or ""
    if parts.scheme == "unix" or host in ("localhost", "::1") or host.startswith("127."):
        return
    if not parts.password:
        yield Finding(
            "warning",
            "access",
            f"the server at {host} asks for no password",
            "give it users and passwords (fedq nodes acl NAME prints a node's rule)",
        )
    if parts.scheme != "rediss":
        yield Finding(
            "warning", "access", f"the connection to {host} is not encrypted", "use rediss:// with a TLS port"
        )


def check_clock(relay: Relay) -> Finding:
    """The server's clock against this machine's, at the middle of the quickest of three questions."""
    best, skew = float("inf"), 0.0
    for _ in range(3):
        before = time.time()
        there = relay.now()
        trip = time.time() - before
        if trip < best:
            best, skew = trip, there - (before + trip / 2)
    # What the trip cannot tell is no skew.
    doubt = best / 2
    amount = max(0.0, abs(skew) - doubt)
    words = f"the server's is {span(abs(skew))} {'ahead' if skew > 0 else 'behind'}"
    remedy = "let both machines keep time by NTP; deadlines go by the server's clock"
    if amount >= SKEW_SERIOUS:
        return Finding("serious", "clock", words, remedy)
    if amount >= SKEW_WARNING:
        return Finding("warning", "clock", words, remedy)
    return Finding("ok", "clock", f"agrees with the server's within {max(1.0, amount * 1000):.0f} ms")


def check_prefix(relay: Relay) -> Iterator[Finding]:
    """Whose keys the database holds: ours, RQ's, of other homes, of others."""
    ours = theirs = rq = 0
    homes: set[str] = set()
    with relay.errors():
        for raw in relay.redis.scan_iter(count=1000):
            key = text(raw)
            if key.startswith(relay.keys.base):
                ours += 1
            elif key.startswith(f"{PREFIX}:{{"):
                homes.add(key[len(PREFIX) + 2 :].partition("}")[0])
            elif key.startswith(("rq:", "rq-", "{rq}")):
                rq += 1
            else:
                theirs += 1
    count = f"{ours} keys under {relay.keys.base} and {rq} of RQ"
    if homes:
        yield Finding(
            "warning",
            "key prefix",
            f"there are other homes in this database: {', '.join(sorted(homes))}",
            "is this the server that was meant? use one database for each federation",
        )
    if theirs:
        yield Finding(
            "warning",
            "key prefix",
            f"{count}, and {theirs} keys of other programs, which share the memory limit",
            "give the federation a server of its own",
        )
    else:
        yield Finding("ok", "key prefix", count)


def check_federation(relay: Relay) -> Iterator[Finding]:
    """SuperLinks, pending runs and nodes."""
    live = len(links.live(relay))
    pending = [info for info in list_runs(relay, 200) if info.status == "pending"]
    if live:
        yield Finding("ok", "superlinks", f"{live} at work")
    elif pending:
        yield Finding(
            "serious", "superlinks", f"none, and {len(pending)} runs wait for one", "start one with fedq superlink"
        )
    else:
        yield Finding("warning", "superlinks", "none: submitted runs will wait", "start one with fedq superlink")
    if live and pending:
        yield Finding(
            "warning",
            "runs",
            f"{len(pending)} wait for a free slot",
            "start another fedq superlink, or one with more --runs; or stop a run",
        )
    nodes = list_nodes(relay, details=False)
    away = [node.name for node in nodes if not node.online]
    if not nodes:
        yield Finding("warning", "nodes", "none is registered", "start one with fedq supernode --name NAME")
    elif away:
        shown = ", ".join(away[:5]) + (f" and {len(away) - 5} more" if len(away) > 5 else "")
        yield Finding(
            "warning",
            "nodes",
            f"{len(nodes) - len(away)} of {len(nodes)} online; offline: {shown}",
            "start their SuperNodes, or take them off the register with fedq nodes rm",
        )
    else:
        yield Finding("ok", "nodes", f"{len(nodes)} of {len(nodes)} online")


def check_orphans(census: Census) -> Finding:
    """Keys that nothing will ever delete."""
    if not census.orphans:
        return Finding("ok", "orphaned keys", "none")
    example = census.orphans[0]
    return Finding(
        "warning",
        "orphaned keys",
        f"{len(census.orphans)}, such as {example.key} ({example.why})",
        "fedq doctor --remove-orphans deletes them",
    )
