"""How are scales and biases, which have signs and may cancel, added without any rounding?

1. While all numbers so far are near enough in size, float64 adds them without rounding.
2. When they are not, what was added goes into whole-numbered digits, see sum_places, and the sum
   starts anew.
3. A row whose own numbers are too far apart goes into the digits one by one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from moe_weights.compiled import inlined, kernel
from moe_weights.quantize.sum_places import (
    DIGIT_BITS,
    DIGITS,
    LARGEST,
    LEAST,
    N_DIGITS,
    PENDING,
    TERMS,
    TOP_EXPONENT,
)

_TOP_UNIT, _NEXT_UNIT = 2.0**TOP_EXPONENT, 2.0**-DIGIT_BITS
_WINDOW = 2.0**28


@inlined
def _add_exactly(sums: Any, place: int, value: float) -> None:  # pragma: no cover
    """Add a multiple of the least float32 to the digits of a sum without rounding."""
    unit = _TOP_UNIT
    for number in range(place + DIGITS, place + DIGITS + N_DIGITS):
        if value == 0.0:
            break
        if abs(value) >= unit:
            digit = np.trunc(value / unit)
            sums[number] += digit
            value -= digit * unit
        unit *= _NEXT_UNIT
    if value != 0.0:  # NaN, also what an infinite one leaves
        sums[place + DIGITS] = np.nan


@kernel
def _start_anew(
    sums: Any, place: int, numbers: Any, first: int, count: int, fits: bool
) -> None:  # pragma: no cover
    """Carry what is pending into the digits, and a row that float64 cannot add as well."""
    _add_exactly(sums, place, sums[place + PENDING])
    sums[place + PENDING] = 0.0
    sums[place + TERMS] = 0.0
    sums[place + LARGEST] = 0.0
    sums[place + LEAST] = np.inf
    if not fits:
        for number in range(first, first + count):
            _add_exactly(sums, place, np.float64(numbers[number]))


@inlined
def add_line(
    sums: Any,
    place: int,
    numbers: Any,
    first: int,
    count: int,
    rounded: float,
    largest: float,
    least: float,
) -> None:  # pragma: no cover
    """Add the scales or biases of a row to a sum without rounding.

    Args:
        sums: See sum_places.
        place: `SCALE` or `BIAS`.
        numbers: float32; the row's lie in it.
        first: Where they begin.
        count: How many there are.
        rounded: Their sum in float64, added in any order.
        largest: Largest magnitude.
        least: Least magnitude but zero.
    """
    # Where this holds, all numbers and all their sums are whole multiples, below 2**53, of a least
    # bit.
    terms = sums[place + TERMS] + count
    if max(largest, sums[place + LARGEST]) * terms > min(least, sums[place + LEAST]) * _WINDOW:
        fits = largest * count <= least * _WINDOW
        _start_anew(sums, place, numbers, first, count, fits)
        if not fits:
            return
    sums[place + PENDING] += rounded
    sums[place + TERMS] += count
    sums[place + LARGEST] = max(largest, sums[place + LARGEST])
    sums[place + LEAST] = min(least, sums[place + LEAST])
