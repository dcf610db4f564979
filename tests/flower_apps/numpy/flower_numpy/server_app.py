"""Flower's quickstart: FedAvg over all nodes."""

import os
import signal
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


class Dying(FedAvg):
    """Its process is killed in one round, once."""

    round = 0
    mark = Path()

    def aggregate_train(self, server_round, replies):
        if server_round == self.round and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().aggregate_train(server_round, replies)


@app.lifespan()
def lifespan(context: Context):
    print("the server's lifespan begins")
    yield
    print("the server's lifespan ends")


@app.main()
def main(grid: Grid, context: Context) -> None:
    strategy = Dying(min_train_nodes=3, min_evaluate_nodes=3, min_available_nodes=3)
    strategy.round = int(context.run_config["dies-in-round"])
    strategy.mark = Path(str(context.run_config["output"]) + ".dead")
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord([np.zeros(3)]),
        train_config=ConfigRecord({"lr": context.run_config["lr"]}),
        num_rounds=int(context.run_config["num-server-rounds"]),
    )
    np.savez(str(context.run_config["output"]), *result.arrays.to_numpy_ndarrays())
