"""Runs apps in Flower's own simulation, one after the other, in one process: ``simulate.py NODES JSON``.

JSON maps the name of an app to its run config, since ``run_simulation`` itself gives an empty one.
"""

import importlib
import json
import sys
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

HERE = Path(__file__).parent


def simulate(name: str, config: dict, nodes: int) -> None:
    client_app = importlib.import_module(f"flower_{name}.client_app").app
    inner = importlib.import_module(f"flower_{name}.server_app").app
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        context.run_config.update(config)
        inner(grid, context)

    backend = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    run_simulation(server_app, client_app, num_supernodes=nodes, backend_config=backend)


if __name__ == "__main__":
    for app, run_config in json.loads(sys.argv[2]).items():
        simulate(app, run_config, int(sys.argv[1]))
