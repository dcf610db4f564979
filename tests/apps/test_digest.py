"""What arrays and apps are named by."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedq.apps.digest import Digest, digest_of


def test_it_is_the_blake3_digest_in_hexadecimal() -> None:
    """The first of the test vectors that the authors of BLAKE3 publish: of no bytes, and of one that is zero."""
    assert digest_of(b"") == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
    assert digest_of(b"\0") == "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213"


@given(st.lists(st.binary(max_size=200), max_size=8))
def test_of_bytes_that_come_in_parts_it_is_the_same(parts: list[bytes]) -> None:
    digest = Digest()
    for part in parts:
        digest.update(part)
    assert digest.hexdigest() == digest_of(b"".join(parts))


def test_of_an_array_it_is_that_of_its_bytes() -> None:
    for array in (np.arange(6.0).reshape(2, 3), np.zeros((0, 3)), np.array(1.5), np.arange(4, dtype=">i2")):
        assert digest_of(array.data) == digest_of(bytearray(array.tobytes())) == digest_of(array.tobytes())
