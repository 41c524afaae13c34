"""What sums over all elements of a matrix say: mean, deviation, norm, tails."""

from __future__ import annotations

import math
from dataclasses import dataclass

from moe_weights.columns import Cell
from moe_weights.measure.pattern_counts import ExactSum


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerSums:
    """Sums over all elements of a finite matrix.

    Attributes:
        n_elements: How many.
        total: Sum of w.
        magnitudes: Sum of |w|.
        max_abs: Largest |w|.
        exponent: The sums below are of w / 2**exponent, so that float64 neither overflows nor
            underflows; 0 where there is no such danger.
        squares: Sum of w**2.
        second: Sum of (w - mean)**2.
        fourth: Sum of (w - mean)**4.
        is_quotient_rounded_once: The means are correctly rounded quotients; otherwise the sum is
            rounded before it is divided, which is exact where count * value is.
    """

    n_elements: int
    total: ExactSum
    magnitudes: ExactSum
    max_abs: float
    exponent: int
    squares: float
    second: float
    fourth: float
    is_quotient_rounded_once: bool


def describe(sums: PowerSums) -> dict[str, Cell]:
    """Return the moments by column name."""
    n = sums.n_elements
    largest = math.ldexp(sums.max_abs, -sums.exponent)
    # Mathematically none of them exceeds the largest magnitude; rounding might.
    rms = min(math.sqrt(sums.squares / n), largest)
    std = min(math.sqrt(sums.second / n), largest)
    mean_abs = min(sums.magnitudes.split(n, sums.exponent)[0], largest)
    kurtosis = n * sums.fourth / (sums.second * sums.second) - 3 if sums.second else None
    return {
        "mean": _mean(sums.total, sums),
        "std": math.ldexp(std, sums.exponent),
        "mean_abs": _mean(sums.magnitudes, sums),
        "rms": math.ldexp(rms, sums.exponent),
        "max_abs": sums.max_abs,
        "kurtosis": kurtosis,
        "crest": ratio(largest, rms),
        "aimer": ratio(mean_abs, rms),
        "frobenius": _frobenius(sums),
    }


def _mean(total: ExactSum, sums: PowerSums) -> float:
    n = sums.n_elements
    return total.rounded(n) if sums.is_quotient_rounded_once else total.rounded() / n


def _frobenius(sums: PowerSums) -> float | None:
    try:
        return math.ldexp(math.sqrt(sums.squares), sums.exponent)
    except OverflowError:
        return None


def ratio(numerator: float, denominator: float) -> float | None:
    """Return the quotient, or None where it is undefined (zero denominator) or overflows."""
    if denominator == 0:
        return None
    quotient = numerator / denominator
    return quotient if math.isfinite(quotient) else None


def outlier_ratios(values: dict[str, Cell], eps: float) -> dict[str, Cell]:
    """Return the three fixed ratios of a finite matrix from its moments and percentiles.

    Args:
        values: Has max_abs, mean_abs and the three fixed percentiles.
        eps: Added to each denominator.
    """
    max_abs, mean_abs, p50, p99, p999 = (
        float(values[name] or 0.0)  # type: ignore[arg-type]  # these are floats
        for name in ("max_abs", "mean_abs", "p50_abs", "p99_abs", "p999_abs")
    )
    return {
        "outlier_max_over_mean": ratio(max_abs, mean_abs + eps),
        "outlier_p99_over_median": ratio(p99, p50 + eps),
        "outlier_p999_over_median": ratio(p999, p50 + eps),
    }
