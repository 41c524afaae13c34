"""Percentiles by linear interpolation between order statistics, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


class Percentiles:
    """Where some percentiles of a population stand among its order statistics.

    Attributes:
        ranks: Sorted ranks (0 = smallest) that `interpolate` looks up, int64, read-only.
    """

    __slots__ = ("_places", "ranks")

    def __init__(self, count: int, percentiles: Sequence[float]) -> None:
        """Find the places.

        Args:
            count: Size of the population.
            percentiles: 0 to 100, in any order, with repeats.
        """
        found = [_position(count, percentile) for percentile in percentiles]
        ranks = sorted({rank for lower, upper, _fraction in found for rank in (lower, upper)})
        self._places = [
            (ranks.index(lower), ranks.index(upper), fraction) for lower, upper, fraction in found
        ]
        self.ranks = np.array(ranks, dtype=np.int64)
        self.ranks.setflags(write=False)

    def interpolate(self, values: NDArray[np.float64]) -> list[float]:
        """Return the percentiles.

        Args:
            values: The order statistics at `ranks`.

        Returns:
            One value per percentile, equal to `numpy.percentile(..., method="linear")` in float64.
        """
        known = values.tolist()
        results = []
        for lower, upper, fraction in self._places:
            low, high = known[lower], known[upper]
            # NumPy's own form of the interpolation: exact at both ends and monotonic.
            step = high - low
            results.append(
                high - step * (1 - fraction) if fraction >= 0.5 else low + step * fraction
            )
        return results


@lru_cache(maxsize=256)  # a checkpoint has a handful of shapes
def percentiles_among(count: int, percentiles: tuple[float, ...]) -> Percentiles:
    """Return the places of percentiles in a population of `count`; made once."""
    return Percentiles(count, percentiles)


def percentiles_of(values: NDArray[np.floating], percentiles: Sequence[float]) -> list[float]:
    """Return percentiles of a flat array of any float dtype, computed in float64."""
    wanted = percentiles_among(values.size, tuple(percentiles))
    return wanted.interpolate(np.partition(values, wanted.ranks)[wanted.ranks].astype(np.float64))


def _position(count: int, percentile: float) -> tuple[int, int, float]:
    place = (count - 1) * (percentile / 100)
    lower = int(place)
    return lower, min(lower + 1, count - 1), place - lower
