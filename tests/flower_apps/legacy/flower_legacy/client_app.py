"""A NumPyClient behind a client_fn, as most apps before 1.21 have it."""

import numpy as np
from flwr.client import ClientApp, NumPyClient
from flwr.common import Context


class Client(NumPyClient):
    def __init__(self, partition: int) -> None:
        self.step = np.random.default_rng(partition).normal(size=3)

    def get_parameters(self, config):
        return [np.ones(3)]

    def fit(self, parameters, config):
        return [parameters[0] + self.step * config["lr"]], 10, {"norm": float(np.linalg.norm(self.step))}

    def evaluate(self, parameters, config):
        return float(np.sum(parameters[0])), 10, {}


def client_fn(context: Context):
    return Client(int(context.node_config["partition-id"])).to_client()


app = ClientApp(client_fn=client_fn)
