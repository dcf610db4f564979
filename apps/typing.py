"""Names for the types that appear in signatures."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = [
    "ConfigRecordValues",
    "ConfigScalar",
    "ConfigScalarList",
    "MetricRecordValues",
    "MetricScalar",
    "MetricScalarList",
    "NDArray",
]

NDArray: TypeAlias = npt.NDArray[Any]
"""An array of any dtype and shape."""

MetricScalar: TypeAlias = int | float
MetricScalarList: TypeAlias = list[int] | list[float]
MetricRecordValues: TypeAlias = MetricScalar | MetricScalarList
"""What a MetricRecord holds."""

ConfigScalar: TypeAlias = MetricScalar | str | bytes | bool
ConfigScalarList: TypeAlias = MetricScalarList | list[str] | list[bytes] | list[bool]
ConfigRecordValues: TypeAlias = ConfigScalar | ConfigScalarList
"""What a ConfigRecord holds."""

# Arrays of these kinds travel: bool, signed, unsigned, float, complex, timedelta, datetime.
Dtype: TypeAlias = np.dtype[Any]
