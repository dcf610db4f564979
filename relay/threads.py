"""How many threads the numerical libraries of an app may use.

Every library asks the environment once, when it is loaded, and otherwise takes all cores; with one process per slot
that makes slots fight each other, and sums come out differently from machine to machine. So services set one thread per
slot before NumPy is loaded, the same for tests, simulation and deployment, unless the operator has said otherwise.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterable, MutableMapping

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
"""What OpenMP, OpenBLAS, MKL, BLIS, Accelerate and numexpr read when they are loaded."""

_SETTERS = (
    "scipy_openblas_set_num_threads64_",
    "scipy_openblas_set_num_threads",
    "openblas_set_num_threads64_",
    "openblas_set_num_threads",
)


def limit_threads(threads: int | None = 1, environ: MutableMapping[str, str] | None = None) -> dict[str, str]:
    """Let the numerical libraries of this process and its children use ``threads`` threads each.

    A variable that the environment already sets is the operator's word and stays. None changes nothing. Where a BLAS
    has been loaded before (this should be called first of all), its number is set as well, as far as it can be told.

    Returns the variables of :data:`THREAD_VARIABLES` that are set now.
    """
    environment: MutableMapping[str, str] = os.environ if environ is None else environ
    if threads is not None:
        if threads < 1:
            raise ValueError(f"threads must be at least 1, not {threads}")
        said_otherwise = any(environment.get(name) for name in THREAD_VARIABLES[:3])
        for name in THREAD_VARIABLES:
            environment.setdefault(name, str(threads))
        if "numpy" in sys.modules and environment is os.environ and not said_otherwise:
            _limit_loaded(threads, _loaded_libraries())
    return {name: environment[name] for name in THREAD_VARIABLES if name in environment}


def _loaded_libraries() -> list[str]:
    """Paths of the BLAS libraries mapped into this process (Linux only; elsewhere an empty list)."""
    paths = set()
    with contextlib.suppress(OSError), open("/proc/self/maps") as maps:
        for line in maps:
            path = line.rstrip("\n").partition("/")[2]
            if "blas" in path.rpartition("/")[2]:
                paths.add("/" + path)
    return sorted(paths)


def _limit_loaded(threads: int, libraries: Iterable[str]) -> None:
    for path in libraries:
        with contextlib.suppress(OSError):
            library = ctypes.CDLL(path)
            for name in _SETTERS:
                setter = getattr(library, name, None)
                if setter is not None:
                    setter.argtypes, setter.restype = [ctypes.c_int], None
                    setter(threads)
                    break
