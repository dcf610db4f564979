"""A federation in this process, for tests of apps: no server, no workers, milliseconds.

::

    from fedq.apps.testing import Federation

    def test_it_learns():
        run = Federation(nodes=4).run(server_app, client_app, config={"num-rounds": 3})
        assert run.result.evaluate_metrics_serverapp[3]["accuracy"] > 0.9
"""

from fedq.apps.testing.clock import Clock
from fedq.apps.testing.federation import Federation, ask
from fedq.apps.testing.run import Event, FederationRun, FederationStuck, Interrupted

__all__ = ["Clock", "Event", "Federation", "FederationRun", "FederationStuck", "Interrupted", "ask"]
