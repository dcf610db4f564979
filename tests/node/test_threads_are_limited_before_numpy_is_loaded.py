"""One thread per slot, unless the operator has said otherwise."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fedq.relay.threads import THREAD_VARIABLES, limit_threads

COUNT = """
import sys
from fedq.relay.threads import limit_threads
assert "numpy" not in sys.modules
if sys.argv[1] == "late":
    import numpy
limit_threads(1)
import numpy
from threadpoolctl import threadpool_info
print(max(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"))
"""


def test_every_known_variable_is_set() -> None:
    environ: dict[str, str] = {}

    assert limit_threads(2, environ) == dict.fromkeys(THREAD_VARIABLES, "2")
    assert environ == dict.fromkeys(THREAD_VARIABLES, "2")


def test_the_operators_word_stays() -> None:
    environ = {"OMP_NUM_THREADS": "8"}

    limit_threads(1, environ)

    assert environ["OMP_NUM_THREADS"] == "8"


def test_none_changes_nothing() -> None:
    environ: dict[str, str] = {}

    assert limit_threads(None, environ) == {}
    assert environ == {}


def test_less_than_one_thread_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        limit_threads(0, {})


@pytest.mark.parametrize("moment", ["early", "late"])
def test_blas_uses_one_thread_even_if_it_was_loaded_before(moment: str) -> None:
    environ = {"PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", COUNT, moment], env=environ, capture_output=True, text=True, check=False
    )

    assert done.stderr == ""
    assert done.stdout.strip() == "1"
