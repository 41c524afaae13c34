"""How are scales and biases, which have signs and may cancel, added without any rounding?

1. Where all numbers of a row are near enough in size, float64 adds them without rounding.
2. Otherwise they are taken one by one.
3. Either way the sum goes into whole-numbered digits, see sum_places.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from moe_weights.compiled import inlined, kernel
from moe_weights.quantize.sum_places import DIGIT_BITS, N_DIGITS, TOP_EXPONENT

_TOP_UNIT, _NEXT_UNIT = 2.0**TOP_EXPONENT, 2.0**-DIGIT_BITS
_WINDOW = 2.0**28


@inlined
def _add_exactly(sums: Any, place: int, value: float) -> None:  # pragma: no cover
    """Add a multiple of the least float32 to a sum without rounding, see sum_places."""
    unit = _TOP_UNIT
    for number in range(place, place + N_DIGITS):
        if value == 0.0:
            break
        if abs(value) >= unit:
            digit = np.trunc(value / unit)
            sums[number] += digit
            value -= digit * unit
        unit *= _NEXT_UNIT
    if value != 0.0:  # NaN, also what an infinite one leaves
        sums[place] = np.nan


@kernel
def add_line(
    sums: Any, place: int, line: Any, rounded: float, most: float, least: float
) -> None:  # pragma: no cover
    """Add the scales or biases of a row to a sum without rounding.

    Args:
        sums: See sum_places.
        place: `SCALE` or `BIAS`.
        line: (n_groups,) float32.
        rounded: Their sum in float64, added in any order.
        most: Largest magnitude.
        least: Least magnitude but zero.
    """
    # Then all of them and all their sums are whole multiples, below 2**53, of a least bit.
    if most * len(line) <= least * _WINDOW:
        _add_exactly(sums, place, rounded)
    else:
        for number in range(len(line)):
            _add_exactly(sums, place, np.float64(line[number]))
