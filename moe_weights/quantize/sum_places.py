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
# Sums without any rounding, as scales and biases have signs and may cancel. Each begins with what
# float64 could add exactly so far, of how many terms, and their largest and least magnitude (zero
# apart). Behind it whole numbers, the first in units of 2**128, each next one in units 2**24 times
# smaller. The last unit is finer than any float32; 2**28 terms fit.
PENDING, TERMS, LARGEST, LEAST, DIGITS = 0, 1, 2, 3, 4
N_DIGITS = 13
TOP_EXPONENT, DIGIT_BITS = 128, 24
SCALE = 15
BIAS = SCALE + DIGITS + N_DIGITS


_NO_SUMS = np.zeros(BIAS + DIGITS + N_DIGITS)
_NO_SUMS[[SCALE_MAX, BIAS_MAX]] = -np.inf
_NO_SUMS[[SCALE + LEAST, BIAS + LEAST]] = np.inf


def new_sums() -> NDArray[np.float64]:
    """Return the sums of no weight at all."""
    return _NO_SUMS.copy()


def exact_mean(sums: Sequence[float], place: int, count: int) -> float | None:
    """Return a sum without rounding over a count, correctly rounded; None where it is not finite.

    Args:
        sums: As kernels left them.
        place: `SCALE` or `BIAS`.
        count: Terms.
    """
    pending = sums[place + PENDING]
    digits = sums[place + DIGITS : place + DIGITS + N_DIGITS]
    if not all(map(math.isfinite, (pending, *digits))):
        return None
    last_unit = (N_DIGITS - 1) * DIGIT_BITS - TOP_EXPONENT
    numerator = 0
    for digit in digits:
        numerator = (numerator << DIGIT_BITS) + int(digit)
    numerator += int(math.ldexp(pending, last_unit))
    return numerator / (count << last_unit)
