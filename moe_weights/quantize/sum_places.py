"""Where in the array of sums does a kernel keep what?

A plain array, because kernels are compiled for plain types.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# Sums; the place behind each holds what rounding took from it.
ERROR_SQUARE, WEIGHT_SQUARE, RESTORED_SQUARE, PRODUCT = 0, 2, 4, 6
# Largest values.
ABS_ERROR, ABS_WEIGHT, SCALE_MAX, ABS_SCALE, BIAS_MAX = 8, 9, 10, 11, 12
# Counts, exact below 2**53.
SATURATED, ZERO_SCALE = 13, 14
# Sums without any rounding, as scales and biases have signs and may cancel: the places hold whole
# numbers, the first in units of 2**128, each next one in units 2**24 times smaller. The last unit
# is finer than any float32; 2**28 terms fit.
SCALE, BIAS = 15, 28
N_DIGITS = 13
TOP_EXPONENT, DIGIT_BITS = 128, 24


def new_sums() -> NDArray[np.float64]:
    """Return the sums of no weight at all."""
    sums = np.zeros(BIAS + N_DIGITS)
    sums[[SCALE_MAX, BIAS_MAX]] = -np.inf
    return sums


def exact_mean(sums: Sequence[float], place: int, count: int) -> float | None:
    """Return a sum without rounding over a count, correctly rounded; None where it is not finite.

    Args:
        sums: As kernels left them.
        place: `SCALE` or `BIAS`.
        count: Terms.
    """
    digits = sums[place : place + N_DIGITS]
    if not all(map(math.isfinite, digits)):
        return None
    numerator = 0
    for digit in digits:
        numerator = (numerator << DIGIT_BITS) + int(digit)
    return numerator / (count << (N_DIGITS - 1) * DIGIT_BITS - TOP_EXPONENT)
