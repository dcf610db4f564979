"""Functions with one ``yield`` that run before and after an app."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeAlias

from fedq.apps.context import Context

LifespanFunction: TypeAlias = Callable[[Context], Iterator[None]]
Lifespan: TypeAlias = Callable[[Context], AbstractContextManager[None]]


@contextmanager
def no_lifespan(_: Context) -> Iterator[None]:
    """The lifespan of an app that registered none."""
    yield


def make_lifespan(function: LifespanFunction) -> Lifespan:
    """Make a context manager of a generator function that yields exactly once.

    What stands after the ``yield`` runs whether or not the app raised.

    Raises:
        RuntimeError: on entering, when it does not yield; on leaving, when it yields more than once.
    """

    @contextmanager
    def lifespan(context: Context) -> Iterator[None]:
        steps = function(context)
        if not isinstance(steps, Iterator) or next(steps, _END) is _END:
            raise RuntimeError(f"the lifespan function {_name(function)} must yield once; it did not yield")
        try:
            yield
        finally:
            if next(steps, _END) is not _END:
                raise RuntimeError(f"the lifespan function {_name(function)} must yield once; it yielded again")

    return lifespan


_END = object()


def _name(function: LifespanFunction) -> str:
    return repr(getattr(function, "__name__", function))
