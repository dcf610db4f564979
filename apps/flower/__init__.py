"""Apps written for Flower, run as they are: their own ``flwr`` ServerApp, ClientApp, strategies, mods and records.

    from fedq.apps.flower import wrap_client_app, wrap_server_app

    client_app = wrap_client_app(flower_client_app)   # a fedq ClientApp
    server_app = wrap_server_app(flower_server_app)   # a fedq ServerApp

Both take what ``flwr.clientapp.ClientApp`` and ``flwr.serverapp.ServerApp`` (or their legacy forms) have made, and give
apps that every runtime of fedq runs. ``flwr`` is imported when an app is wrapped or loaded, never by this package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedq.apps.lazy import exports

if TYPE_CHECKING:
    from fedq.apps.flower.client_app import FlowerClientApp, wrap_client_app
    from fedq.apps.flower.installed import SUPPORTED, is_flower
    from fedq.apps.flower.node_ids import NodeIds, node_number
    from fedq.apps.flower.server_app import FlowerServerApp, wrap_server_app

__all__ = [
    "SUPPORTED",
    "FlowerClientApp",
    "FlowerServerApp",
    "NodeIds",
    "is_flower",
    "node_number",
    "wrap_client_app",
    "wrap_server_app",
]

__getattr__, __dir__ = exports(
    __name__,
    {
        ".client_app": ["FlowerClientApp", "wrap_client_app"],
        ".installed": ["SUPPORTED", "is_flower"],
        ".node_ids": ["NodeIds", "node_number"],
        ".server_app": ["FlowerServerApp", "wrap_server_app"],
    },
)
