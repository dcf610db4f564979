"""A server_fn with a legacy strategy, which asks a client for the initial parameters."""

import numpy as np
from flwr.common import Context, parameters_to_ndarrays
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg


class Saving(FedAvg):
    def __init__(self, path: str, **options) -> None:
        super().__init__(**options)
        self.path = path

    def aggregate_fit(self, server_round, results, failures):
        parameters, metrics = super().aggregate_fit(server_round, results, failures)
        np.savez(self.path, *parameters_to_ndarrays(parameters))
        return parameters, metrics


def server_fn(context: Context) -> ServerAppComponents:
    strategy = Saving(
        str(context.run_config["output"]),
        min_fit_clients=3,
        min_available_clients=3,
        on_fit_config_fn=lambda server_round: {"lr": 0.1 * server_round},
    )
    return ServerAppComponents(
        strategy=strategy, config=ServerConfig(num_rounds=int(context.run_config["num-server-rounds"]))
    )


app = ServerApp(server_fn=server_fn)
