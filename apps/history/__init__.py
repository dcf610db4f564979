"""History: the metrics of a run, round by round, whoever tells them.

::

    history = run.history()             # of a deployed run, while it goes on or afterwards
    history = result.history            # of what strategy.start returned
    steps, values = history.series("server/accuracy")
    history.to_csv("history.csv")
    history.plot("history.png")
"""

from fedq.apps.history.history import History
from fedq.apps.history.round import Round

__all__ = ["History", "Round"]
