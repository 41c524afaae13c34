"""Where in the array of sums does a kernel keep what?

A plain array, because kernels are compiled for plain types.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Sums; the place behind each holds what rounding took from it.
ERROR_SQUARE, WEIGHT_SQUARE, RESTORED_SQUARE, PRODUCT, SCALE, BIAS = 0, 2, 4, 6, 8, 10
# Largest values.
ABS_ERROR, ABS_WEIGHT, SCALE_MAX, ABS_SCALE, BIAS_MAX = 12, 13, 14, 15, 16
# Counts, exact below 2**53.
SATURATED, ZERO_SCALE = 17, 18


def new_sums() -> NDArray[np.float64]:
    """Return the sums of no weight at all."""
    sums = np.zeros(19)
    sums[[SCALE_MAX, BIAS_MAX]] = -np.inf
    return sums
