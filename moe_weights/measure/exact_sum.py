"""The sum of float32 or float64 numbers without cancellation error, in plain NumPy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray


def exact_sum(values: NDArray[Any]) -> float:
    """Return the sum of finite numbers, correctly rounded.

    Args:
        values: Flat array (n,) of float32 with n <= 2**29, or of float64; all finite.

    Returns:
        For float32 the mantissas (24 bit) are added per exponent, where float64 holds their sum
        exactly, and the few hundred partial sums with `math.fsum`. float64 values go to
        `math.fsum` one by one, which is slower.
    """
    if values.dtype != np.float32:
        return math.fsum(values.tolist())
    mantissas, exponents = np.frexp(values)
    lowest = int(exponents.min(initial=0))
    sums = np.bincount(exponents - lowest, weights=mantissas.astype(np.float64))
    return math.fsum(math.ldexp(total, lowest + shift) for shift, total in enumerate(sums.tolist()))
