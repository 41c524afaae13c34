"""Slow oracles: what the numbers of a matrix are, by plain loops over exact fractions.

Nothing here shares code with the product. Percentiles, moments and group ratios are computed with
`Fraction`; simulated quantisation with MLX itself, called directly, and loops over Python floats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Context, Decimal
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

_FIFTY_DIGITS = Context(prec=50, Emin=-99_999, Emax=99_999)


def fractions_of(matrix: NDArray[Any]) -> list[Fraction]:
    """Return every element, row by row, exactly."""
    return [Fraction(float(value)) for row in matrix for value in row]


def slow_mean(values: Sequence[Fraction]) -> float:
    """Return the mean."""
    return float(_mean(values))


def slow_std(values: Sequence[Fraction]) -> float:
    """Return the population standard deviation."""
    mean = _mean(values)
    return _sqrt(_mean([(value - mean) ** 2 for value in values]))


def slow_mean_abs(values: Sequence[Fraction]) -> float:
    """Return the mean magnitude."""
    return float(_mean([abs(value) for value in values]))


def slow_rms(values: Sequence[Fraction]) -> float:
    """Return the root of the mean square."""
    return _sqrt(_mean([value * value for value in values]))


def slow_abs_percentile(values: Sequence[Fraction], percentile: float) -> float:
    """Return a percentile of the magnitudes, linear between neighbours."""
    return float(_percentile([abs(value) for value in values], percentile))


def slow_group_ratios(matrix: NDArray[Any], size: int, eps: float) -> list[Fraction]:
    """Return max|w| / (mean|w| + eps) of each run of `size` columns."""
    ratios = []
    for row in matrix:
        for start in range(0, len(row), size):
            group = [abs(Fraction(float(value))) for value in row[start : start + size]]
            ratios.append(max(group) / (sum(group) / size + Fraction(eps)))
    return ratios


def slow_statistics(
    matrix: NDArray[Any], *, eps: float, group_sizes: Sequence[int]
) -> dict[str, float]:
    """Return the fixed metrics and the group ratios (95th percentile) of a finite matrix (R, C)."""
    values = fractions_of(matrix)
    largest = max(abs(value) for value in values)
    p50, p99, p999 = (
        _percentile([abs(value) for value in values], percentile) for percentile in (50, 99, 99.9)
    )
    statistics = {
        "mean": slow_mean(values),
        "std": slow_std(values),
        "mean_abs": slow_mean_abs(values),
        "rms": slow_rms(values),
        "max_abs": float(largest),
        "p50_abs": float(p50),
        "p99_abs": float(p99),
        "p999_abs": float(p999),
        "outlier_max_over_mean": float(
            largest / (_mean([abs(value) for value in values]) + Fraction(eps))
        ),
        "outlier_p99_over_median": float(p99 / (p50 + Fraction(eps))),
        "outlier_p999_over_median": float(p999 / (p50 + Fraction(eps))),
    }
    for size in group_sizes:
        ratios = slow_group_ratios(matrix, size, eps)
        statistics[f"g{size}_p95_outlier"] = float(_percentile(ratios, 95))
        statistics[f"g{size}_max_outlier"] = float(max(ratios))
    return statistics


def mlx_statistics(
    matrix: NDArray[Any], *, mode: str, bits: int, group_size: int, eps: float
) -> dict[str, float | None]:
    """Quantise a matrix (R, C) with MLX itself and return the numbers of its quant_sim row."""
    import mlx.core as mx

    options: dict[str, Any] = {"group_size": group_size, "bits": bits, "mode": mode}
    weights = mx.array(matrix)
    codes, scales, *biases = mx.quantize(weights, **options, stream=mx.cpu)
    restored = mx.dequantize(codes, scales, *biases, **options, stream=mx.cpu)
    stored = [float(value) for row in matrix for value in row]
    errors = [
        reconstructed - value
        for reconstructed, value in zip(_floats(restored), stored, strict=True)
    ]
    read_scale = {"mxfp4": read_e8m0, "mxfp8": read_e8m0, "nvfp4": read_e4m3}.get(mode)
    real_scales = [read_scale(int(s)) for s in _floats(scales)] if read_scale else _floats(scales)
    real_biases = _floats(biases[0]) if biases else []
    return {
        "w_rel_fro": math.hypot(*errors) / (math.hypot(*stored) + eps),
        "w_rel_max": max(map(abs, errors)) / (max(map(abs, stored)) + eps),
        "scale_mean": math.fsum(real_scales) / len(real_scales),
        "scale_max": max(real_scales),
        "bias_mean": math.fsum(real_biases) / len(real_biases) if biases else None,
        "bias_max": max(real_biases) if biases else None,
        "scale_abs_max": max(map(abs, real_scales)),
    }


def read_e8m0(code: int) -> float:
    """Return the power of two that an exponent byte stands for; 255 is NaN."""
    return math.nan if code == 255 else math.ldexp(1.0, code - 127)


def read_e4m3(code: int) -> float:
    """Return what sign, four exponent bits (bias 7) and three fraction bits stand for."""
    sign = -1.0 if code & 0x80 else 1.0
    exponent, fraction = (code >> 3) & 0xF, code & 0x7
    if (exponent, fraction) == (15, 7):
        return math.nan
    if exponent == 0:
        return sign * math.ldexp(fraction, -9)
    return sign * math.ldexp(8 + fraction, exponent - 10)


def _floats(array: Any) -> list[float]:
    import mlx.core as mx

    return [float(value) for value in np.array(array.astype(mx.float32)).reshape(-1)]


def _mean(values: Sequence[Fraction]) -> Fraction:
    total = Fraction(0)
    for value in values:
        total += value
    return total / len(values)


def _percentile(values: Sequence[Fraction], percentile: float) -> Fraction:
    ordered = sorted(values)
    place = (len(ordered) - 1) * Fraction(str(percentile)) / 100
    lower = place.numerator // place.denominator
    upper = min(lower + 1, len(ordered) - 1)
    return ordered[lower] + (ordered[upper] - ordered[lower]) * (place - lower)


def _sqrt(value: Fraction) -> float:
    quotient = _FIFTY_DIGITS.divide(Decimal(value.numerator), Decimal(value.denominator))
    return float(_FIFTY_DIGITS.sqrt(quotient))
