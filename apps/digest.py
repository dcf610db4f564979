"""The name of an array's bytes, and of an app's: their BLAKE3 digest, 64 hexadecimal digits.

BLAKE3 rather than SHA-256, since each array is hashed wherever it leaves or arrives, and processors without SHA
instructions do that at a tenth of the pace at which they copy memory. It is as hard to find two contents of one digest
(O'Connor, Aumasson, Neves, Wilcox-O'Hearn: BLAKE3, one function, fast everywhere, 2020).
"""

from __future__ import annotations

from blake3 import blake3

__all__ = ["Digest", "digest_of"]

Digest = blake3
"""A digest of bytes that come in parts: ``update`` and ``hexdigest``, as with those of hashlib."""


def digest_of(data: bytes | bytearray | memoryview) -> str:
    """The name of these bytes, which must be contiguous in C order; of an array, those that it lies in memory as."""
    view = memoryview(data)
    if view.ndim != 1 or view.format != "B":
        view = view.cast("B") if view.nbytes else memoryview(b"")
    return blake3(view).hexdigest()
