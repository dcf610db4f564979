"""Secure aggregation: Flower's mod around a NumPyClient."""

import numpy as np
from flwr.client import ClientApp, NumPyClient
from flwr.client.mod import secaggplus_mod
from flwr.common import Context


class Client(NumPyClient):
    def __init__(self, partition: int) -> None:
        self.partition = partition
        self.step = np.random.default_rng(partition).normal(size=3) / 4

    def fit(self, parameters, config):
        np.random.seed(self.partition)  # the mod rounds at random
        return [parameters[0] + self.step], 10, {}


def client_fn(context: Context):
    return Client(int(context.node_config["partition-id"])).to_client()


app = ClientApp(client_fn=client_fn, mods=[secaggplus_mod])
