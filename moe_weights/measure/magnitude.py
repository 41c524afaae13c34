"""How large the weights of one matrix are: moments, percentiles of |w|, outlier ratios, counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from moe_weights.columns import Cell, Column
from moe_weights.measure.exact_sum import exact_sum
from moe_weights.measure.histogram import PatternHistogram
from moe_weights.measure.order_statistics import percentiles_of
from moe_weights.measure.settings import (
    FIXED_PERCENTILES,
    MeasureSettings,
    extra_percentile_columns,
)

_UNIT = "weight"
_BLOCK_ELEMENTS = 2**20
_BELOW_ONE = math.nextafter(1.0, 0.0)


def magnitude_columns() -> tuple[Column, ...]:
    """The eleven fixed metrics, in contract order."""
    return (
        Column("mean", "float64", "mean of w", _UNIT),
        Column("std", "float64", "population standard deviation, sqrt(mean((w - mean)^2))", _UNIT),
        Column("mean_abs", "float64", "mean of |w|", _UNIT),
        Column("rms", "float64", "sqrt(mean(w^2))", _UNIT),
        Column("max_abs", "float64", "max |w|", _UNIT),
        Column("p50_abs", "float64", "median of |w|, linear interpolation", _UNIT),
        Column("p99_abs", "float64", "99th percentile of |w|, linear interpolation", _UNIT),
        Column("p999_abs", "float64", "99.9th percentile of |w|, linear interpolation", _UNIT),
        Column("outlier_max_over_mean", "float64", "max_abs / (mean_abs + eps)", "relative"),
        Column("outlier_p99_over_median", "float64", "p99_abs / (p50_abs + eps)", "relative"),
        Column("outlier_p999_over_median", "float64", "p999_abs / (p50_abs + eps)", "relative"),
    )


def extra_columns(settings: MeasureSettings) -> tuple[Column, ...]:
    """Additive columns: further percentiles of `stats.percentiles_abs`, then counts."""
    percentiles = tuple(
        Column(name, "float64", f"{percentile}th percentile of |w|, linear interpolation", _UNIT)
        for name, percentile in extra_percentile_columns(settings.percentiles_abs).items()
    )
    return (
        *percentiles,
        Column("n_zero", "int64", "elements equal to 0 (either sign)", "elements"),
        Column("n_nan", "int64", "elements that are NaN", "elements"),
        Column("n_inf", "int64", "elements that are +Inf or -Inf", "elements"),
    )


class _Population(Protocol):
    """Exact statistics of all elements of a matrix; moments only where all are finite."""

    @property
    def n_nan(self) -> int: ...
    @property
    def n_inf(self) -> int: ...
    @property
    def n_zero(self) -> int: ...
    @property
    def max_abs(self) -> float: ...
    def mean(self) -> float: ...
    def mean_abs(self) -> float: ...
    def rms(self) -> float: ...
    def std(self, mean: float) -> float: ...
    def abs_percentiles(self, percentiles: list[float]) -> list[float]: ...


def measure_magnitude(
    matrix: NDArray[Any], settings: MeasureSettings, sampled: NDArray[np.int64] | None
) -> dict[str, Cell]:
    """Measure one matrix.

    Args:
        matrix: (R, C), contiguous; float16, bfloat16, float32 or float64; at least one element.
        settings: Which percentiles, which eps.
        sampled: Flat indices that percentiles are taken from; None means all elements.

    Returns:
        A value for every name of `magnitude_columns` and `extra_columns`; all floats are None when
        an element is not finite.
    """
    is_16_bit = matrix.dtype.itemsize == 2
    population: _Population = PatternHistogram.of(matrix) if is_16_bit else _WideFloats.of(matrix)
    counts: dict[str, Cell] = {
        "n_zero": population.n_zero,
        "n_nan": population.n_nan,
        "n_inf": population.n_inf,
    }
    extra = extra_percentile_columns(settings.percentiles_abs)
    wanted = FIXED_PERCENTILES | extra
    if population.n_nan or population.n_inf:
        names = [column.name for column in magnitude_columns()]
        return dict.fromkeys([*names, *extra]) | counts
    mean = population.mean()
    mean_abs = population.mean_abs()
    max_abs = population.max_abs
    percentiles = list(wanted.values())
    if sampled is None:
        abs_percentiles = population.abs_percentiles(percentiles)
    else:
        drawn = np.abs(matrix.reshape(-1)[sampled].astype(np.float64))
        abs_percentiles = percentiles_of(drawn, percentiles)
    by_name = dict(zip(wanted, abs_percentiles, strict=True))
    p50, p99, p999 = (by_name[name] for name in FIXED_PERCENTILES)
    return {
        "mean": mean,
        "std": population.std(mean),
        "mean_abs": mean_abs,
        "rms": population.rms(),
        "max_abs": max_abs,
        **by_name,
        "outlier_max_over_mean": ratio(max_abs, mean_abs + settings.eps),
        "outlier_p99_over_median": ratio(p99, p50 + settings.eps),
        "outlier_p999_over_median": ratio(p999, p50 + settings.eps),
        **counts,
    }


def ratio(numerator: float, denominator: float) -> float | None:
    """Return the quotient, or None where it is undefined (zero denominator) or overflows."""
    if denominator == 0:
        return None
    quotient = numerator / denominator
    return quotient if math.isfinite(quotient) else None


@dataclass(frozen=True, slots=True, eq=False)
class _WideFloats:
    """Statistics of a float32 or float64 matrix; sums of squares in float64, pairwise.

    Attributes:
        flat: (n,) the elements.
        n_nan: Elements that are NaN.
        n_inf: Elements that are infinite.
        exponent: Squares are taken of w / 2**exponent, exactly, so that float64 neither overflows
            nor underflows; 0 for float32, which float64 holds with room to spare.
    """

    flat: NDArray[Any]
    n_nan: int
    n_inf: int
    exponent: int

    @classmethod
    def of(cls, matrix: NDArray[Any]) -> _WideFloats:
        flat = matrix.reshape(-1)
        n_nan = int(np.count_nonzero(np.isnan(flat)))
        n_inf = int(np.count_nonzero(np.isinf(flat)))
        exponent = 0
        if flat.dtype == np.float64 and not n_nan and not n_inf:
            exponent = math.frexp(max(flat.max(), -flat.min()))[1]
        return cls(flat, n_nan, n_inf, exponent)

    @property
    def n_zero(self) -> int:
        return int(self.flat.size - np.count_nonzero(self.flat))

    @property
    def max_abs(self) -> float:
        return abs(float(max(self.flat.max(), -self.flat.min())))  # abs: -0.0 is no magnitude

    def mean(self) -> float:
        try:
            mean = exact_sum(self.flat) / self.flat.size
        except OverflowError:
            scaled = np.ldexp(self.flat, -self.exponent)
            mean = self._unscaled(exact_sum(scaled) / self.flat.size)
        # The division may round past equal elements, which would give them a deviation.
        return min(max(mean, float(self.flat.min())), float(self.flat.max()))

    def mean_abs(self) -> float:
        return self._unscaled(self._mean_of(np.abs))

    def rms(self) -> float:
        return self._unscaled(math.sqrt(self._mean_of(np.square)))

    def std(self, mean: float) -> float:
        centre = math.ldexp(mean, -self.exponent)
        square = self._mean_of(lambda block: np.square(block - centre))
        # The rounding of the mean adds its own square; it is taken away again.
        offset = self._mean_of(lambda block: block - centre)
        return self._unscaled(math.sqrt(max(square - offset * offset, 0.0)))

    def abs_percentiles(self, percentiles: list[float]) -> list[float]:
        return percentiles_of(np.abs(self.flat), percentiles)

    def _blocks(self) -> Iterator[NDArray[Any]]:
        for start in range(0, self.flat.size, _BLOCK_ELEMENTS):
            block = self.flat[start : start + _BLOCK_ELEMENTS]
            yield np.ldexp(block, -self.exponent) if self.exponent else block

    def _mean_of(self, transform: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> float:
        # Blocks keep the float64 copy small; sums of squares or magnitudes cannot cancel.
        sums = [float(transform(block.astype(np.float64)).sum()) for block in self._blocks()]
        return math.fsum(sums) / self.flat.size

    def _unscaled(self, value: float) -> float:
        if not self.exponent:
            return value
        # No |mean|, rms or deviation exceeds max|w|, which is below 1 when scaled; rounding may.
        return math.ldexp(min(max(value, -_BELOW_ONE), _BELOW_ONE), self.exponent)
