"""How unequal the norms of rows, or of columns, are."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from moe_weights.columns import Cell
from moe_weights.compiled import kernel
from moe_weights.measure.double_double import add_to
from moe_weights.measure.moments import ratio
from moe_weights.measure.order_statistics import percentiles_of


@kernel
def add_numbers(numbers: NDArray[np.float64]) -> tuple[float, float]:  # pragma: no cover
    """Return the sum of some numbers, rounded, and what the rounding left."""
    high = low = 0.0
    for i in range(len(numbers)):
        high, low = add_to(high, low, numbers[i])
    return high + low, (high - (high + low)) + low


@kernel
def _describe(norms: NDArray[np.float64]) -> tuple[float, float, float, float]:  # pragma: no cover
    """Return mean and largest of some norms, and the sums of deviations and of their squares."""
    smallest = largest = norms[0]
    for i in range(len(norms)):
        smallest, largest = min(smallest, norms[i]), max(largest, norms[i])
    mean = min(max(add_numbers(norms)[0] / len(norms), smallest), largest)
    plain = plain_low = square = square_low = 0.0
    for i in range(len(norms)):
        deviation = norms[i] - mean
        plain, plain_low = add_to(plain, plain_low, deviation)
        square, square_low = add_to(square, square_low, deviation * deviation)
    return mean, largest, plain + plain_low, square + square_low


def norm_spread(name: str, squares: NDArray[np.float64]) -> dict[str, Cell]:
    """Return the two columns of row norms or column norms.

    Args:
        name: Begin of the column names, "row" or "col".
        squares: Sums of squares, one per row or column, in any one unit.

    Returns:
        The coefficient of variation and largest / median; None where the denominator is 0
        or the quotient is beyond float64.
    """
    norms = np.sqrt(squares)
    n = norms.size
    mean, largest, plain, square = _describe(norms)
    # The rounding of the mean adds its own square; it is taken away again.
    variance = max(square / n - (plain / n) ** 2, 0.0)
    median = percentiles_of(norms, [50.0])[0]
    return {
        f"{name}_norm_cv": ratio(math.sqrt(variance), mean),
        f"{name}_norm_max_over_median": ratio(largest, median),
    }
