"""Part ``simulation``: rounds on virtual nodes, beside Flower's simulation engine (Ray) with the same work."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, Self

from benchmarks.federation import ANSWER
from benchmarks.flower_federation import VERSION, flower_python
from benchmarks.flower_simulation import FlowerSimulation
from benchmarks.launch import tail
from benchmarks.options import Options
from benchmarks.rows import Goal, Row
from fedq.cli.simulation import LocalSimulation
from fedq.relay import SuperLink

WORKERS = 2
CASES = (
    # nodes, asked in each round, bytes, how many times as long Flower may at least take
    (10, 10, 1000, 2.0),
    (10, 10, 1_000_000, 2.0),
    (1000, 100, 1000, 1.0),
)


class Simulation:
    """What ``fedq simulate`` starts, with a ServerApp that does what it is told over a socket."""

    def __init__(self, nodes: int, workers: int, isolation: str) -> None:
        self._stack = ExitStack()
        self.folder = Path(self._stack.enter_context(TemporaryDirectory(prefix="fedq-sim-")))
        self._local = LocalSimulation(
            nodes=nodes, slots=workers, isolation=isolation, directory=self.folder / "simulation"
        )
        self._pipe: BinaryIO | None = None
        self.nodes: list[str] = []

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._pipe is not None:
            self._pipe.close()
        self._stack.close()

    def _start(self) -> None:
        from benchmarks.app import client_app, server_app

        self._stack.enter_context(self._local)
        for _ in self._local.wait_until_online():
            pass
        link = self._stack.enter_context(SuperLink.connect(self._local.url))
        path = self.folder / "app.sock"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen(1)
            listener.settimeout(60.0)
            link.submit(server_app, client_app, config={"socket": str(path)}, name="benchmark")
            try:
                connection, _address = listener.accept()
            except TimeoutError:
                log = tail(self.folder / "simulation" / "superlink.log")
                raise RuntimeError(f"the ServerApp did not start:\n{log}") from None
        with connection:
            connection.settimeout(ANSWER)
            self._pipe = connection.makefile("rwb")  # type: ignore[assignment]
        self.nodes = self.ask({"do": "hello"})["nodes"]

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Let the ServerApp do something; its answer."""
        assert self._pipe is not None
        self._pipe.write(json.dumps(request).encode() + b"\n")
        self._pipe.flush()
        line = self._pipe.readline()
        if not line:
            raise RuntimeError(f"the ServerApp has ended:\n{tail(self.folder / 'simulation' / 'nodes.log')}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def rounds(self, count: int, nbytes: int, asked: int) -> list[float]:
        """Seconds of so many rounds with ``asked`` nodes, back to back."""
        chosen = spread(self.nodes, asked)
        return list(self.ask({"do": "rounds", "rounds": count, "bytes": nbytes, "nodes": chosen})["seconds"])


def spread(nodes: list[str], asked: int) -> list[str]:
    """As many from the front as from the end, so that on average they add one."""
    return nodes[: asked - asked // 2] + nodes[len(nodes) - asked // 2 :]


def measure(options: Options) -> Iterator[Row]:
    """Both at the same time, measured in turn. The figure is Flower's, the floor ours, as in part ``flower``."""
    python = flower_python(options.flower)
    for nodes, asked, nbytes, faster in CASES[:1] if options.small else CASES:
        options.say(f"simulation: {nodes} virtual nodes, {asked} in a round")
        for isolation in options.isolation_or("run"):
            with FlowerSimulation(python, nodes, WORKERS) as flower, Simulation(nodes, WORKERS, isolation) as ours:
                count = 2 if options.small else 5 if asked > 10 else 10
                flower.rounds(2, nbytes, asked)
                ours.rounds(2, nbytes, asked)
                samples: list[float] = []
                floors: list[float] = []
                for _ in range(options.repetitions):
                    samples.append(sum(flower.rounds(count, nbytes, asked)) / count)
                    floors.append(sum(ours.rounds(count, nbytes, asked)) / count)
            what = f"Flower {VERSION}, simulation" + (f", {asked} a round" if asked != nodes else "")
            goal = Goal("ratio", ">=", faster)
            yield Row("simulation", what, isolation, nodes, nbytes, samples, floors, f"fedq, {isolation}", "s", goal)
