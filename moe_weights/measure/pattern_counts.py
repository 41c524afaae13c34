"""How often each class of bit patterns occurs, and the exact sums that follow from it.

1. Each weight is counted in the class of its first sixteen bits; of wider types the bits below are
   added per class, as integers.
2. Per exponent, the fractions of all its classes are added, as integers.
3. Python's integers put the exponents together: sums are exact, however much cancels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_weights.compiled import kernel
from moe_weights.measure.double_double import add_to
from moe_weights.measure.float_format import FloatFormat

# Places of the integers that the counting kernels keep between blocks.
PENDING, N_ZERO, N_INF, DIFFERS, ROW = range(5)
N_STATE = 5
# A 32-bit counter holds this many equal patterns.
FULL_NARROW = 2**32 - 1
# A packed counter has 24 bits for the count; that many 16-bit parts fit into its other 40 bits.
FULL_SINGLE = 2**24 - 1


@kernel
def empty_narrow(
    fast: NDArray[np.uint32], counts: NDArray[np.int64], state: NDArray[np.int64]
) -> None:  # pragma: no cover
    """Move 32-bit counts to 64-bit ones."""
    for pattern in range(len(fast)):
        counts[pattern] += np.int64(fast[pattern])
        fast[pattern] = np.uint32(0)
    state[PENDING] = 0


@kernel
def close_counts(
    counts: NDArray[np.int64], limit: int, denormal_stop: int, magnitudes: NDArray[np.int64]
) -> tuple[int, int, int, int, int]:  # pragma: no cover
    """Join the counts of both signs.

    Args:
        counts: (65536,) by class.
        limit: First magnitude class of Inf and NaN.
        denormal_stop: End of the magnitude classes of zero and denormal numbers.
        magnitudes: (32768,) filled with the counts by magnitude class.

    Returns:
        Distinct classes that occur; first and last finite magnitude class that occurs, 0 and 0 if
        none does; weights below `denormal_stop`; weights from `limit` on.
    """
    n_distinct = first = last = n_small = n_not_finite = 0
    for k in range(len(magnitudes)):
        plus, minus = counts[k], counts[k | 0x8000]
        both = plus + minus
        magnitudes[k] = both
        if both:
            n_distinct += (plus > 0) + (minus > 0)
            if k < limit:
                last = k
            else:
                n_not_finite += both
    while first < last and not magnitudes[first]:
        first += 1
    for k in range(denormal_stop):
        n_small += magnitudes[k]
    return n_distinct, first, last, n_small, n_not_finite


@kernel
def empty_single(
    packed: NDArray[np.uint64],
    counts: NDArray[np.int64],
    low_sums: NDArray[np.int64],
    state: NDArray[np.int64],
) -> None:  # pragma: no cover
    """Move packed counts and sums to where they cannot overflow."""
    for pattern in range(len(packed)):
        counts[pattern] += np.int64(packed[pattern] >> np.uint64(40))
        low_sums[0, pattern] += np.int64(packed[pattern] & np.uint64((1 << 40) - 1))
        packed[pattern] = np.uint64(0)
    state[PENDING] = 0


@kernel
def count_double(
    row: NDArray[np.uint64], counts: NDArray[np.int64], low_sums: NDArray[np.int64]
) -> None:  # pragma: no cover
    """Count float64 patterns by class and add their lower 48 bits, 24 at a time.

    Args:
        row: (C,).
        counts: (65536,).
        low_sums: (2, 65536) sums of bits 24 to 47, sums of bits 0 to 23.
    """
    low_mask = np.uint64(0xFFFFFF)
    for i in range(len(row)):
        bits = row[i]
        pattern = bits >> np.uint64(48)
        counts[pattern] += 1
        low_sums[0, pattern] += np.int64((bits >> np.uint64(24)) & low_mask)
        low_sums[1, pattern] += np.int64(bits & low_mask)


@kernel
def special_of(counts: NDArray[Any], not_finite: int) -> Any:  # pragma: no cover
    """Return a number that changes when a zero, a denormal, an Inf or a NaN is counted."""
    sign = 0x8000
    return np.int64(counts[0] + counts[sign] + counts[not_finite] + counts[not_finite | sign])


@kernel
def count_special(
    row: NDArray[Any],
    first: Any,
    magnitude_mask: Any,
    inf: Any,
    has_special: bool,
    state: NDArray[np.int64],
) -> None:  # pragma: no cover
    """Count zeros and infinities of a row, and see whether a pattern is not `first`.

    Args:
        row: (C,) uint32 or uint64.
        first: First pattern of the matrix.
        magnitude_mask: All bits but the sign, of the row's type.
        inf: Pattern of Inf, of the row's type.
        has_special: The row holds a class in which zeros or infinities are.
        state: See the places above.
    """
    if has_special:
        for i in range(len(row)):
            magnitude = row[i] & magnitude_mask
            if magnitude == 0:
                state[N_ZERO] += 1
            elif magnitude == inf:
                state[N_INF] += 1
    if not state[DIFFERS]:
        for i in range(len(row)):
            if row[i] != first:
                state[DIFFERS] = 1
                break


@kernel
def _sum_exponents(
    counts: NDArray[np.int64],
    low_sums: NDArray[np.int64],
    fraction_bits: int,
    first_field: int,
    last_field: int,
    sums: NDArray[np.int64],
) -> None:  # pragma: no cover
    """Add the fractions of every exponent.

    Args:
        counts: (65536,), see `exact_sums`.
        low_sums: (parts, 65536), see there.
        fraction_bits: That a class fixes.
        first_field: Lowest exponent field that occurs.
        last_field: Highest one.
        sums: (2, 1 + parts, n) of w and of |w|; denormals count with the lowest normal numbers,
            whose exponent they have.
    """
    n_fractions = 1 << fraction_bits
    for field in range(first_field, last_field + 1):
        place = max(field, 1) - max(first_field, 1)
        implicit = n_fractions if field else 0
        for fraction in range(n_fractions):
            plus = (field << fraction_bits) | fraction
            minus = plus | 0x8000
            if not counts[plus] and not counts[minus]:
                continue
            sums[0, 0, place] += (counts[plus] - counts[minus]) * (implicit + fraction)
            sums[1, 0, place] += (counts[plus] + counts[minus]) * (implicit + fraction)
            for part in range(low_sums.shape[0]):
                sums[0, 1 + part, place] += low_sums[part, plus] - low_sums[part, minus]
                sums[1, 1 + part, place] += low_sums[part, plus] + low_sums[part, minus]


@kernel
def narrow_powers(
    counts: NDArray[np.int64],
    values: NDArray[np.float64],
    start: int,
    stop: int,
    high: float,
    low: float,
) -> tuple[float, float, float]:  # pragma: no cover
    """Return the sums of w**2, (w - mean)**2 and (w - mean)**4 of 16-bit weights.

    Args:
        counts: (65536,) by pattern.
        values: (32768,) magnitudes.
        start: First magnitude that occurs.
        stop: End of those that occur; finite.
        high: Mean, rounded.
        low: What the rounding left.
    """
    square = square_low = second = second_low = fourth = fourth_low = 0.0
    for magnitude in range(start, stop):
        value = values[magnitude]
        for sign in range(2):
            count = counts[magnitude | (sign << 15)]
            if not count:
                continue
            weight = float(count)
            centred = ((-value if sign else value) - high) - low
            power = centred * centred
            square, square_low = add_to(square, square_low, weight * (value * value))
            second, second_low = add_to(second, second_low, weight * power)
            fourth, fourth_low = add_to(fourth, fourth_low, weight * (power * power))
    return square + square_low, second + second_low, fourth + fourth_low


@dataclass(frozen=True, slots=True)
class ExactSum:
    """A sum without rounding: numerator * 2**exponent.

    Attributes:
        numerator: Any size.
        exponent: Not above 0.
    """

    numerator: int
    exponent: int

    def rounded(self, divisor: int = 1) -> float:
        """Return the sum over a divisor, correctly rounded.

        Raises:
            OverflowError: it is beyond the range of float64.
        """
        return self.numerator / (divisor << -self.exponent)

    def split(self, divisor: int, exponent: int) -> tuple[float, float]:
        """Return the sum over divisor * 2**exponent as a rounded number and what that left."""
        numerator, denominator = self.numerator, divisor << -self.exponent
        if exponent >= 0:
            denominator <<= exponent
        else:
            numerator <<= -exponent
        high = numerator / denominator
        above, below = high.as_integer_ratio()
        return high, (numerator * below - above * denominator) / (denominator * below)


def exact_sums(
    counts: NDArray[np.int64],
    low_sums: NDArray[np.int64],
    number_format: FloatFormat,
    first: int,
    last: int,
) -> tuple[ExactSum, ExactSum]:
    """Return the sums of w and of |w| of finite weights.

    Args:
        counts: (65536,) by class.
        low_sums: (parts, 65536) sums of the bits below, equally wide parts, highest first.
        number_format: What the patterns stand for.
        first: First magnitude class that occurs.
        last: Last one; finite.
    """
    n_parts = low_sums.shape[0]
    bits = number_format.class_fraction_bits
    first_field, last_field = first >> bits, last >> bits
    lowest = max(first_field, 1)
    sums = np.zeros((2, 1 + n_parts, max(last_field, 1) - lowest + 1), dtype=np.int64)
    _sum_exponents(counts, low_sums, bits, first_field, last_field, sums)
    exponent = 1 - number_format.bias - number_format.fraction_bits
    part_bits = number_format.low_bits // n_parts if n_parts else 0
    both = []
    for parts in sums.tolist():
        numerator = 0
        for part in parts:
            numerator = (numerator << part_bits) + _joined(part)
        both.append(ExactSum(numerator << (lowest - 1), exponent))
    return both[0], both[1]


def _joined(parts: list[int]) -> int:
    """Return the sum of parts of which each counts twice the one before."""
    total = 0
    for part in reversed(parts):
        total = (total << 1) + part
    return total
