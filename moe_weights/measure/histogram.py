"""Exact statistics of 16-bit weights through the histogram of their bit patterns.

1. Count each of the 65 536 patterns.
2. A count times a value has at most 53 significant bits, so every product is exact in float64.
3. `math.fsum` adds the products without rounding until the end: sums are correctly rounded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_weights.measure.order_statistics import interpolate, needed_ranks

_N_PATTERNS = 65_536


@dataclass(frozen=True, slots=True, eq=False)
class PatternHistogram:
    """How often each finite value occurs in a matrix of a 16-bit float type.

    Attributes:
        values: (n,) distinct values that occur, float64, ascending by bit pattern.
        counts: (n,) how often each occurs.
        n_elements: All elements, also the ones that are not finite.
        n_nan: Elements that are NaN.
        n_inf: Elements that are +Inf or -Inf.
    """

    values: NDArray[np.float64]
    counts: NDArray[np.int64]
    n_elements: int
    n_nan: int
    n_inf: int

    @classmethod
    def of(cls, matrix: NDArray[Any]) -> PatternHistogram:
        """Count the bit patterns of a matrix (R, C) of float16 or bfloat16, contiguous."""
        counts = np.bincount(matrix.reshape(-1).view(np.uint16), minlength=_N_PATTERNS)
        patterns = np.flatnonzero(counts)
        with np.errstate(invalid="ignore"):  # a signalling NaN is counted like any other
            values = patterns.astype(np.uint16).view(matrix.dtype).astype(np.float64)
        occurring = counts[patterns]
        finite = np.isfinite(values)
        return cls(
            values=values[finite],
            counts=occurring[finite],
            n_elements=matrix.size,
            n_nan=int(occurring[np.isnan(values)].sum()),
            n_inf=int(occurring[np.isinf(values)].sum()),
        )

    @property
    def n_zero(self) -> int:
        """Elements that are +0 or -0."""
        return int(self.counts[self.values == 0].sum())

    @property
    def max_abs(self) -> float:
        """Largest |w|."""
        return float(np.abs(self.values).max())

    def mean(self) -> float:
        """Mean of w, correctly rounded sum."""
        return math.fsum(self.values * self.counts) / self.n_elements

    def mean_abs(self) -> float:
        """Mean of |w|, correctly rounded sum."""
        return math.fsum(np.abs(self.values) * self.counts) / self.n_elements

    def rms(self) -> float:
        """Square root of the mean of w squared, correctly rounded sum."""
        return math.sqrt(math.fsum(self.values * self.values * self.counts) / self.n_elements)

    def std(self, mean: float) -> float:
        """Population standard deviation around `mean`."""
        centred = self.values - mean
        return math.sqrt(math.fsum(centred * centred * self.counts) / self.n_elements)

    def abs_percentiles(self, percentiles: Sequence[float]) -> list[float]:
        """Percentiles of |w| over all elements, linear interpolation."""
        magnitudes = np.abs(self.values)
        order = np.argsort(magnitudes, kind="stable")
        cumulative = np.cumsum(self.counts[order])
        ranks = needed_ranks(self.n_elements, percentiles)
        found = magnitudes[order][np.searchsorted(cumulative, ranks, side="right")]
        return interpolate(self.n_elements, percentiles, ranks, found)
