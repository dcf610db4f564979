"""Runs a federation while killing it, and judges what came out."""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from rq.registry import FailedJobRegistry, FinishedJobRegistry, StartedJobRegistry

from fedq.apps.testing import Federation
from fedq.relay import cleanup, runs
from fedq.relay.connection import Relay
from fedq.relay.jobs import FedqJob, FedqQueue
from fedq.relay.superlink import RunResult, SuperLink
from tests.chaos import app, audit
from tests.chaos.faults import KINDS, Fault
from tests.chaos.site import AWAY, Site
from tests.support import processes, wait_until

UNLIMITED = 1_000_000
STUCK = 180.0
"""Seconds without progress after the last fault after which a run counts as stuck."""
KEPT = (":nodes", ":info", ":inbox", ":links", ":run-counter", ":wake", "rq:queues")
"""Keys that outlive every run: the registers (who was killed is struck off when slots are counted next), and what RQ
never forgets."""


@dataclass(frozen=True)
class Plan:
    """What is asked for."""

    seed: int
    rounds: int = 100
    nodes: int = 3
    faults: tuple[str, ...] = tuple(KINDS)
    mode: str = "spaced"
    isolation: str = "fork"
    delay: float = 0.1
    interval: float = 1.0
    """Mean seconds between two faults of a storm."""
    max_faults: int | None = None

    @property
    def config(self) -> dict[str, Any]:
        return {"num-rounds": self.rounds, "nodes": self.nodes, "delay": self.delay}


@dataclass
class Report:
    """What came out."""

    plan: Plan
    faults: Counter[str] = field(default_factory=Counter)
    recoveries: dict[str, list[float]] = field(default_factory=dict)
    slowest: dict[str, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0
    messages: int = 0
    redeliveries: int = 0
    fenced: int = 0
    lost: int = 0
    duplicated: int = 0
    attempts: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)

    def recovered(self, fault: Fault, seconds: float) -> None:
        known = self.recoveries.setdefault(fault.kind, [])
        if seconds >= max(known, default=0.0):
            self.slowest[fault.kind] = fault.what
        known.append(seconds)

    def as_json(self) -> dict[str, Any]:
        plan = {name: getattr(self.plan, name) for name in self.plan.__dataclass_fields__}
        recovery = {
            kind: {"median": round(statistics.median(v), 3), "worst": round(max(v), 3), "slowest": self.slowest[kind]}
            for kind, v in sorted(self.recoveries.items())
        }
        figures = ("messages", "redeliveries", "fenced", "lost", "duplicated", "attempts", "outcomes")
        return {
            "ok": not self.wrong,
            "plan": plan,
            "seconds": round(self.seconds, 1),
            "faults": dict(sorted(self.faults.items())),
            **{name: getattr(self, name) for name in figures},
            "recovery": recovery,
            "wrong": self.wrong,
        }

    def table(self) -> str:
        lines = [f"{'fault':<12}{'number':>8}{'median s':>10}{'worst s':>10}  the slowest"]
        for kind, number in sorted(self.faults.items()):
            times = self.recoveries.get(kind)
            figures = f"{statistics.median(times):>10.2f}{max(times):>10.2f}" if times else f"{'':>20}"
            lines.append(f"{kind:<12}{number:>8}{figures}  {self.slowest.get(kind, '')}".rstrip())
        lines.append(f"{'all':<12}{self.faults.total():>8}")
        lines.append("")
        lines.append(
            f"{self.messages} messages, {self.redeliveries} redeliveries, {self.fenced} fenced commits, "
            f"{self.attempts} attempts of the ServerApp; {self.lost} lost, {self.duplicated} duplicated; "
            f"{self.seconds:.0f} s"
        )
        lines += [f"WRONG: {line}" for line in self.wrong] or ["the same bits as undisturbed"]
        return "\n".join(lines)


class Chaos:
    """One run under one plan."""

    def __init__(self, plan: Plan, site: Site, say: Callable[[str], None]) -> None:
        self.plan = plan
        self.site = site
        self.say = say
        self.dice = random.Random(plan.seed)
        self.report = Report(plan)
        self.undos: list[tuple[float, Fault]] = []
        self.run = 0
        self.begun = time.monotonic()

    def execute(self) -> RunResult | None:
        """Submit, disturb until the run is over; its result, or None."""
        link = SuperLink.connect(self.site.server.url)
        with link:
            submitted = link.submit(
                *(app.server_app, app.client_app),
                config=self.plan.config,
                max_deliveries=UNLIMITED if self.plan.mode == "storm" else 20,
                max_attempts=UNLIMITED,
            )
            self.run = submitted.run_id
            self.begun = time.monotonic()
            try:
                self._wait("the first round", lambda: (self.site.checkpoint(self.run) or 0) >= 1)
                (self._spaced if self.plan.mode == "spaced" else self._storm)()
                self._undo(everything=True)
                self._wait("the end of the run", lambda: self.over, watch=True)
            except Stuck as stuck:
                self.report.wrong.append(str(stuck))
                return None
            self.report.seconds = time.monotonic() - self.begun
            info = runs.run_info(link.relay, self.run)
            if info.status != "finished":
                self.report.wrong.append(f"the run {info.status}: {info.reason}\n{info.traceback}")
                return None
            return submitted.result(timeout=60)

    @property
    def over(self) -> bool:
        return self.site.status(self.run) not in ("pending", "running", None)

    @property
    def enough(self) -> bool:
        most = self.plan.max_faults
        return most is not None and self.report.faults.total() >= most

    # -- modes --------------------------------------------------------------------------------------------------------

    def _spaced(self) -> None:
        """One fault, progress, the next."""
        while not self.over and not self.enough:
            kinds = list(self.plan.faults)
            marks = {name: self.site.replies(self.run, name) for name in self.site.names}
            checkpoint = self.site.checkpoint(self.run)
            fault = self._inject(self.dice.choice(kinds), spaced=True)
            if fault is None:
                self.site.listen(self.run, 0.02)
                continue
            since = fault.since
            # As it stands after the fault: what was done just before is no progress.
            before: object = self._progress(fault) or (marks[fault.node] if fault.node else checkpoint)
            if fault.from_undo:
                self._wait("the end of the fault", lambda: time.monotonic() >= self.undos[0][0])
                begun = time.monotonic()
                self._undo(everything=True)
                # A server counts from when it answers, a service from when it is started.
                since = time.monotonic() if fault.kind in ("redis", "pause") else begun
                before = self._progress(fault) or checkpoint
            self._wait(f"progress after {fault.what}", lambda b=before, f=fault: self.over or self._beyond(f, b))  # type: ignore[misc]
            took = time.monotonic() - since
            self.report.recovered(fault, took)
            self.say(f"{'':8} went on after {took:.2f} s")
            self._wait("the end of the fault", self._undone)
            # The next fault finds a federation that works.
            now = self.site.checkpoint(self.run) or 0
            self._wait("a round without faults", lambda n=now: self.over or (self.site.checkpoint(self.run) or 0) > n)  # type: ignore[misc]
            time.sleep(self.dice.random() * 0.3)

    def _storm(self) -> None:
        """Faults as they come, whatever the last one did."""
        while not self.over and not self.enough:
            self._inject(self.dice.choice(self.plan.faults), spaced=False)
            pause = time.monotonic() + self.dice.expovariate(1 / self.plan.interval)
            while time.monotonic() < pause:
                self._undo()
                self.site.listen(self.run, min(0.05, max(0.001, pause - time.monotonic())))

    def _inject(self, kind: str, *, spaced: bool) -> Fault | None:
        self._look_at_services()
        fault = KINDS[kind](self.site, self.dice, spaced)
        if fault is not None:
            self.report.faults[kind] += 1
            self.say(f"{time.monotonic() - self.begun:8.2f} {kind}: {fault.what}")
            if fault.undo is not None:
                self.undos.append((fault.since + fault.after, fault))
        return fault

    def _undo(self, *, everything: bool = False) -> None:
        for due, fault in list(self.undos):
            if everything or time.monotonic() >= due or fault.until():
                self.undos.remove((due, fault))
                assert fault.undo is not None
                fault.undo()

    def _undone(self) -> bool:
        self._undo()
        return not self.undos

    # -- progress -----------------------------------------------------------------------------------------------------

    def _progress(self, fault: Fault) -> object:
        return self.site.replies(self.run, fault.node) if fault.node else self.site.checkpoint(self.run)

    def _beyond(self, fault: Fault, before: object) -> bool:
        now = self._progress(fault)
        return now is not None and now != before

    def _wait(self, what: str, predicate: Callable[[], bool], *, watch: bool = False) -> None:
        """Wait; as long as it takes if ``watch``, as long as rounds go by."""
        last, changed = None, time.monotonic()
        while not predicate():
            self._look_at_services()
            if what.startswith("progress"):
                self._undo()
            if watch and (now := self.site.checkpoint(self.run)) != last:
                last, changed = now, time.monotonic()
            if time.monotonic() - changed > STUCK:
                raise Stuck(f"waited {STUCK:g} s for {what}\n{self._state()}")
            self.site.listen(self.run, 0.05)

    def _look_at_services(self) -> None:
        """What is killed is started again; nothing may end by itself."""
        for name, service in self.site.services.items():
            if (status := service.ended_by_itself) is not None:
                raise Stuck(f"{name} has ended by itself, with status {status}\n{service.output()[-3000:]}")

    def _state(self) -> str:
        lines = [f"checkpoint {self.site.checkpoint(self.run)}, status {self.site.status(self.run)}"]
        for name in self.site.names:
            try:
                claims: Any = self.site.client.hgetall(f"fedq:{{0}}:node:{name}:claims")
                waiting: Any = self.site.client.xlen(f"fedq:{{0}}:node:{name}:inbox")
                lines.append(f"{name}: inbox {waiting}, claims {claims}")
            except AWAY as error:
                lines.append(f"{name}: {error}")
        return "\n".join([*lines, self.site.said()])


class Stuck(Exception):
    """Nothing goes on."""


def undisturbed(plan: Plan) -> Any:
    """The result of the same app in a federation where nothing fails."""
    federation = Federation([f"node-{i}" for i in range(plan.nodes)])
    return federation.run(app.server_app, app.client_app, {**plan.config, "delay": 0.0}).result


def judge(report: Report, result: RunResult | None, expected: Any) -> None:
    """Compare bits and counters."""
    if result is None:
        return
    plan = report.plan
    assert result.arrays is not None
    mine, theirs = result.arrays.to_numpy_ndarrays(), expected.arrays.to_numpy_ndarrays()
    if [a.tobytes() for a in mine] != [a.tobytes() for a in theirs]:
        report.wrong.append("the final parameters are not those of an undisturbed run")
    rounds = result.train_metrics_clientapp
    if sorted(rounds) != list(range(1, plan.rounds + 1)):
        report.wrong.append(f"metrics of {len(rounds)} rounds instead of {plan.rounds}")
    for number, metrics in rounds.items():
        told = (metrics["replies"], metrics["lowest"], metrics["highest"])
        if told != (plan.nodes, number, number):
            report.wrong.append(f"round {number}: replies, lowest and highest count of executions are {told}")


def judge_file(report: Report, folder: Path) -> None:
    """Read what the server wrote."""
    found = audit.read(folder)
    report.messages, report.redeliveries = found.messages, found.redeliveries
    report.lost, report.duplicated = len(found.lost), len(found.duplicated)
    report.attempts = len(found.attempts)
    report.outcomes = dict(found.outcomes)
    report.fenced = found.outcomes["superseded"]
    wanted = report.plan.rounds * report.plan.nodes
    if found.messages != wanted:
        report.wrong.append(f"{found.messages} messages were sent, not {wanted}")
    if found.lost:
        report.wrong.append(f"{len(found.lost)} messages were never answered")
    if found.duplicated:
        report.wrong.append(f"sent or answered twice: {', '.join(found.duplicated[:5])}")


def judge_rest(report: Report, site: Site, run: int) -> None:
    """After the run and the services have ended, nothing is left."""
    with Relay.connect(site.server.url) as relay:
        if not cleanup.remove_run(relay, run):
            report.wrong.append("the run could not be removed")
    # Who was started a moment ago is told to stop when it has arrived.
    wait_until(site.complete, lambda: f"all services are there again\n{site.said()}", timeout=90, ignore=AWAY)
    report.wrong += site.stop()
    tidy_rq(site)
    names = [key.decode() for key in site.client.scan_iter(count=1000)]
    left = [name for name in names if site.client.ttl(name) == -1 and not name.endswith(KEPT)]
    left = [name for name in left if not name.startswith("rq:workers") or lasting_workers(site, name)]
    if left:
        report.wrong.append(f"{len(left)} keys are left: {', '.join(sorted(left)[:10])}")
    for name in site.names:
        waiting: Any = site.client.xrange(f"fedq:{{0}}:node:{name}:inbox")
        if any(fields[b"kind"] == b"message" for _, fields in waiting):
            report.wrong.append(f"the inbox of {name} still holds messages")
    if files := sorted(path.name for path in site.scratch.iterdir()):
        report.wrong.append(f"{len(files)} temporary files are left: {', '.join(files[:10])}")


def tidy_rq(site: Site) -> None:
    """What RQ's own maintenance does in the course of time, with all records old enough."""
    for name in ("_serverapps", *site.names):
        queue = FedqQueue(name, site.client)
        for registry in (StartedJobRegistry, FinishedJobRegistry, FailedJobRegistry):
            # In this order: what was abandoned becomes a failed job, which is forgotten in turn.
            registry(queue=queue, job_class=FedqJob).cleanup(timestamp=2**40)
        # Taken off the queue by somebody killed at that moment: RQ fails it after a minute, and forgets it.
        for job_id in site.client.lrange(queue.intermediate_queue_key, 0, -1):
            site.client.lrem(queue.intermediate_queue_key, 0, job_id)
            site.client.delete(FedqJob.key_for(job_id.decode()))


def lasting_workers(site: Site, key: str) -> list[bytes]:
    """The workers in a register of RQ that its maintenance would never strike off."""
    return [worker for worker in site.client.smembers(key) if site.client.ttl(worker) == -1]


def chaos(plan: Plan, folder: Path, say: Callable[[str], None] = lambda line: None) -> Report:
    """Carry out the plan in a folder of its own."""
    expected = undisturbed(plan)
    mark = os.environ[processes.MARK]
    before = {process.pid for process in processes.stray_processes(mark)}
    with Site(folder, plan.nodes, plan.isolation) as site:
        run = Chaos(plan, site, say)
        result = run.execute()
        judge(run.report, result, expected)
        if not run.report.wrong:
            judge_rest(run.report, site, run.run)
        judge_file(run.report, folder / "server")
        if run.report.wrong:
            (folder / "services.log").write_text(site.said())
    left = processes.stray_processes(mark, before)
    if left:
        run.report.wrong.append("processes are left: " + "; ".join(processes.described(p) for p in left[:5]))
    return run.report


def main(arguments: Sequence[str] | None = None, out: TextIO = sys.stdout) -> int:
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__)
    parser.add_argument("--seed", type=int, help="what is killed when; a fresh one is printed")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--faults", default=",".join(KINDS), help=f"of {', '.join(KINDS)} (default: all)")
    parser.add_argument("--mode", choices=["spaced", "storm"], default="spaced")
    parser.add_argument("--isolation", choices=["fork", "run", "inline"], default="fork")
    parser.add_argument("--interval", type=float, default=1.0, help="mean seconds between faults of a storm")
    parser.add_argument("--delay", type=float, default=0.1, help="seconds that a ClientApp works")
    parser.add_argument("--max-faults", type=int, help="no more than this many")
    parser.add_argument("--keep", type=Path, help="keep logs and the server's data in this new folder")
    parser.add_argument("--json", action="store_true", help="print nothing but one JSON object")
    given = parser.parse_args(arguments)
    kinds = tuple(given.faults.split(","))
    if unknown := set(kinds) - set(KINDS):
        parser.error(f"unknown faults: {', '.join(sorted(unknown))}; there are {', '.join(KINDS)}")
    seed = given.seed if given.seed is not None else random.SystemRandom().randrange(1_000_000)
    options = {name: getattr(given, name) for name in ("rounds", "nodes", "mode", "isolation", "delay", "interval")}
    plan = Plan(seed, faults=kinds, max_faults=given.max_faults, **options)
    processes.set_mark(uuid.uuid4().hex)

    def say(line: str) -> None:
        if not given.json:
            print(line, file=sys.stderr, flush=True)

    # Told to stop, it still ends what it has started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    say(f"seed {seed}")
    with tempfile.TemporaryDirectory(prefix="fedq-chaos-") as scratch:
        folder = given.keep if given.keep else Path(scratch) / "site"
        folder.mkdir(parents=True)
        report = chaos(plan, folder, say)
    print(json.dumps(report.as_json(), indent=2) if given.json else report.table(), file=out)
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
