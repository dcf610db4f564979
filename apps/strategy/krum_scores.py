"""Krum's score of a reply: how far the replies nearest to it are."""

from __future__ import annotations

import numpy as np

from fedq.apps.reals import Reals


def krum_scores(squared_distances: Reals, malicious: int) -> Reals:
    """For each of n vectors the sum of the squared distances to the ``n - malicious - 2`` nearest others, at least one.

    P. Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", 2017,
    https://arxiv.org/abs/1703.02757, section 4.

    Args:
        squared_distances: of the vectors from each other, (n, n), symmetric.
        malicious: how many of them an attacker may have sent.
    """
    count = len(squared_distances)
    nearest = max(1, count - malicious - 2)
    scores = np.zeros(count, dtype=np.float64)
    for place in range(count):
        others = np.delete(squared_distances[place], place)
        scores[place] = np.sort(others)[:nearest].sum()
    return scores


def lowest(scores: Reals, number: int) -> list[int]:
    """The places of the lowest scores, lowest first; of equal ones the earlier."""
    return [int(place) for place in np.argsort(scores, kind="stable")[:number]]


def lowest_repeatedly(squared_distances: Reals, malicious: int, number: int) -> list[int]:
    """The places which Krum chooses, when each is taken out before it chooses again."""
    left = list(range(len(squared_distances)))
    chosen: list[int] = []
    while left and len(chosen) < number:
        scores = krum_scores(squared_distances[np.ix_(left, left)], malicious)
        chosen.append(left.pop(lowest(scores, 1)[0]))
    return chosen


def enough(count: int, malicious: int) -> bool:
    """Whether Krum's guarantee holds: it needs ``n > 2 * malicious + 2`` (proposition 1 of the paper)."""
    return count > 2 * malicious + 2
