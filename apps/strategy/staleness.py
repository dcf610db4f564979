"""How much a reply counts that was trained on an older model.

Staleness is the number of updates which the model had between the sending of a message and the arrival of its reply: 0
for a reply to the newest model. A staleness function gives the factor for it, 1 at staleness 0 and less, but above 0,
the staler the reply. Any function of an integer will do; these are those of C. Xie, S. Koyejo and I. Gupta,
"Asynchronous Federated Optimization", 2019, https://arxiv.org/abs/1903.03934, section 5.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from fedq.apps.errors import StrategyError

Staleness = Callable[[int], float]


def constant_staleness() -> Staleness:
    """1 for all: a stale reply counts like a fresh one."""
    return lambda staleness: 1.0


def polynomial_staleness(a: float = 0.5) -> Staleness:
    """``(1 + staleness) ** -a``. With ``a = 0.5`` it is the ``1 / sqrt(1 + staleness)`` of FedBuff's paper."""
    if not (math.isfinite(a) and a >= 0.0):
        raise ValueError(f"a must be at least 0, not {a}")
    return lambda staleness: float((1.0 + staleness) ** -a)


def hinge_staleness(a: float = 10.0, b: float = 4.0) -> Staleness:
    """1 up to a staleness of `b`, then ``1 / (a * (staleness - b) + 1)``."""
    if not (math.isfinite(a) and a > 0.0):
        raise ValueError(f"a must be above 0, not {a}")
    if not b >= 0.0:
        raise ValueError(f"b must be at least 0, not {b}")
    return lambda staleness: 1.0 if staleness <= b else 1.0 / (a * (staleness - b) + 1.0)


def factor(function: Staleness, staleness: int) -> float:
    """What the function gives for this staleness.

    Raises:
        StrategyError: it is no number above 0 and at most 1.
    """
    value = float(function(staleness))
    if not 0.0 < value <= 1.0:
        raise StrategyError(
            f"the staleness function gave {value} for a staleness of {staleness}; it has to give numbers above 0, up "
            "to 1"
        )
    return value
