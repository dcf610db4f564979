"""What the apps beside it use: a module of the submitter that no node has."""

from __future__ import annotations

from typing import Any

import numpy as np


def plus(array: np.ndarray[Any, Any], step: float) -> np.ndarray[Any, Any]:
    return array + step


def divide(a: float, b: float) -> float:
    return a / b
