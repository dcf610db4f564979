"""Waiting for a condition, with words for the case that it does not come true."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(
    predicate: Callable[[], T],
    description: str | Callable[[], str],
    *,
    timeout: float = 10.0,
    ignore: tuple[type[BaseException], ...] = (),
) -> T:
    """Call ``predicate`` until it returns something true, and return that.

    Args:
        description: what is waited for, as in "run 7 has ended"; a function of no arguments may tell the present state.
        timeout: seconds; at the end AssertionError with the description.
        ignore: exceptions of the predicate that count as "not yet".
    """
    give_up = time.monotonic() + timeout
    pause = 0.001
    last: BaseException | None = None
    while True:
        try:
            if value := predicate():
                return value
            last = None
        except ignore as error:
            last = error
        if time.monotonic() >= give_up:
            text = description() if callable(description) else description
            raise AssertionError(f"waited {timeout:g} s in vain: {text}" + (f" ({last!r})" if last else ""))
        time.sleep(pause)
        pause = min(pause * 1.5, 0.05)
