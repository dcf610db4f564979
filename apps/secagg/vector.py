"""Updates as vectors of integers, and the masks that hide them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedq.apps.array import Array
from fedq.apps.arrayrecord import ArrayRecord
from fedq.apps.errors import InconsistentReply
from fedq.apps.extras import require

_BLOCK = 1 << 17


@dataclass(frozen=True)
class Quantization:
    """How an update becomes integers modulo ``2 ** modulus_bits``.

    The element x of an update becomes ``rint((clip(x, -c, c) + c) / 2c * (2 ** quantization_bits - 1))``, computed in
    float64, times the weight of the node. The weight itself is the last element.
    """

    clipping_range: float
    quantization_bits: int
    modulus_bits: int

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint32 or uint64, whose arithmetic is that of the modulus."""
        return np.dtype(f"<u{self.modulus_bits // 8}")

    @property
    def steps(self) -> int:
        """The largest integer that one value becomes."""
        return (1 << self.quantization_bits) - 1

    def quantized(self, sent: Mapping[str, Array], trained: Mapping[str, Array], weight: int) -> NDArray[Any]:
        """The flat vector of an update, arrays in the order of those that were sent.

        Raises:
            InconsistentReply: names, shapes or kinds differ from those sent, or a value is not finite.
        """
        if sent.keys() != trained.keys():
            raise InconsistentReply(f"its arrays are {sorted(trained)}, where {sorted(sent)} were sent")
        parts: list[NDArray[Any]] = []
        for name, array in sent.items():
            old, new = array.numpy(copy=False), trained[name].numpy(copy=False)
            if old.shape != new.shape or "c" in (old.dtype.kind, new.dtype.kind):
                raise InconsistentReply(
                    f"its array {name!r} is {new.dtype}{list(new.shape)}, where {old.dtype}{list(old.shape)} was sent; "
                    "complex arrays are not aggregated securely"
                )
            update = new.astype(np.float64).reshape(-1) - old.astype(np.float64).reshape(-1)
            if not np.isfinite(update).all():
                raise InconsistentReply(f"its array {name!r} holds values that are not finite numbers")
            np.clip(update, -self.clipping_range, self.clipping_range, out=update)
            update += self.clipping_range
            update *= self.steps / (2.0 * self.clipping_range)
            whole = np.minimum(np.rint(update), float(self.steps)).astype(self.dtype)
            parts.append(whole * self.dtype.type(weight))
        parts.append(np.array([weight], dtype=self.dtype))
        return np.concatenate(parts)

    def average(self, sent: Mapping[str, Array], total: NDArray[Any]) -> tuple[ArrayRecord, int]:
        """The model that the sum of all vectors means, and the sum of the weights.

        Floating dtypes stay what they are, integers and bools become float64.

        Raises:
            InconsistentReply: the sum is not one of such vectors.
        """
        weight = int(total[-1])
        values = total[:-1].astype(np.float64)
        if not weight or (values.size and float(values.max()) > weight * self.steps * (1.0 + 1e-12)):
            raise InconsistentReply("the sum is no sum of quantised updates")
        averages, at = {}, 0
        for name, array in sent.items():
            old = array.numpy(copy=False)
            mean = values[at : at + old.size] / weight
            at += old.size
            update = mean * (2.0 * self.clipping_range / self.steps) - self.clipping_range
            dtype = np.dtype(np.float64) if old.dtype.kind in "iub" else old.dtype
            new = np.asarray(old.astype(np.float64) + update.reshape(old.shape)).astype(dtype)
            averages[name] = Array.from_numpy_ndarray(new, copy=False)
        return ArrayRecord(averages), weight


def length(arrays: Mapping[str, Array]) -> int:
    """The number of elements of the vector of an update of these arrays."""
    return sum(math.prod(array.shape) for array in arrays.values()) + 1


def add_mask(vector: NDArray[Any], key: bytes, sign: int) -> None:
    """Add (or, with a negative `sign`, subtract) what the key of 32 bytes expands to, in place.

    The mask is the key stream of ChaCha20 from its first block on, read as little-endian integers. A key serves for
    one mask.
    """
    module = require("cryptography.hazmat.primitives.ciphers", "secagg", "masks need cryptography")
    stream = module.Cipher(module.algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
    for start in range(0, vector.size, _BLOCK):
        part = vector[start : start + _BLOCK]
        mask = np.frombuffer(stream.update(bytes(part.nbytes)), dtype=vector.dtype)
        if sign > 0:
            part += mask
        else:
            part -= mask


def pair_sign(node: str, other: str) -> int:
    """+1 at the node whose name comes first, -1 at the other: the masks of a pair cancel."""
    return 1 if node < other else -1
