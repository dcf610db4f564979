"""Flower's workflow of SecAgg+ in place of the plain one."""

import numpy as np
from flwr.common import Context, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server import Grid, LegacyContext, ServerApp, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow

app = ServerApp()


class Saving(FedAvg):
    path = ""

    def aggregate_fit(self, server_round, results, failures):
        parameters, metrics = super().aggregate_fit(server_round, results, failures)
        np.savez(self.path, *parameters_to_ndarrays(parameters))
        return parameters, metrics


@app.main()
def main(grid: Grid, context: Context) -> None:
    strategy = Saving(
        fraction_evaluate=0.0,
        min_available_clients=3,
        min_fit_clients=3,
        initial_parameters=ndarrays_to_parameters([np.zeros(3)]),
    )
    strategy.path = str(context.run_config["output"])
    rounds = int(context.run_config["num-server-rounds"])
    legacy = LegacyContext(context=context, config=ServerConfig(num_rounds=rounds), strategy=strategy)
    fit = SecAggPlusWorkflow(num_shares=3, reconstruction_threshold=2, timeout=60.0)
    DefaultWorkflow(fit_workflow=fit)(grid, legacy)
