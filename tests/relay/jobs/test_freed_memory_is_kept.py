"""A process that lives through many messages uses the memory of one for the next."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest

CODE = """
import json, resource
import numpy as np
from fedq.relay.jobs.heap import keep_freed

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    arrays = [np.full(750_000, number, np.float32) for number in range(8)]  # 3 MB each
    del arrays
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

kept = keep_freed()
faults()
print(json.dumps({"kept": kept, "faults": faults()}))
"""

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only the GNU C library is told")


def measure(environment: Mapping[str, str]) -> dict[str, Any]:
    """What a new interpreter says that allocates 24 MB twice."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", CODE], env={**inherited, **environment}, capture_output=True, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@glibc
def test_the_second_message_finds_the_memory_of_the_first() -> None:
    assert measure({}) == {"kept": True, "faults": pytest.approx(0, abs=50)}  # of 5,900 pages


@glibc
@pytest.mark.parametrize(
    "environment", [{"MALLOC_TRIM_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"}]
)
def test_what_an_operator_has_set_for_the_library_holds(environment: dict[str, str]) -> None:
    found = measure(environment)
    assert not found["kept"]
    assert found["faults"] > 1000
