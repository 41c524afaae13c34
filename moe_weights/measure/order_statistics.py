"""Percentiles by linear interpolation between order statistics, in float64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def needed_ranks(count: int, percentiles: Sequence[float]) -> NDArray[np.int64]:
    """Return the sorted ranks (0 = smallest) that `interpolate` looks up for these percentiles."""
    ranks: set[int] = set()
    for percentile in percentiles:
        lower, upper, _fraction = _position(count, percentile)
        ranks.update((lower, upper))
    return np.array(sorted(ranks), dtype=np.int64)


def interpolate(
    count: int, percentiles: Sequence[float], ranks: NDArray[np.int64], values: NDArray[np.float64]
) -> list[float]:
    """Return the percentiles of a population of which some order statistics are known.

    Args:
        count: Size of the population.
        percentiles: 0 to 100.
        ranks: As `needed_ranks` gives them.
        values: The order statistics at these ranks.

    Returns:
        One value per percentile, equal to `numpy.percentile(..., method="linear")` in float64.
    """
    known = dict(zip(ranks.tolist(), values.tolist(), strict=True))
    results = []
    for percentile in percentiles:
        lower, upper, fraction = _position(count, percentile)
        low, high = known[lower], known[upper]
        # NumPy's own form of the interpolation: exact at both ends and monotonic.
        step = high - low
        results.append(high - step * (1 - fraction) if fraction >= 0.5 else low + step * fraction)
    return results


def percentiles_of(values: NDArray[np.floating], percentiles: Sequence[float]) -> list[float]:
    """Return percentiles of a flat array of any float dtype, computed in float64."""
    ranks = needed_ranks(values.size, percentiles)
    chosen = np.partition(values, ranks)[ranks].astype(np.float64)
    return interpolate(values.size, percentiles, ranks, chosen)


def _position(count: int, percentile: float) -> tuple[int, int, float]:
    place = (count - 1) * (percentile / 100)
    lower = int(place)
    return lower, min(lower + 1, count - 1), place - lower
