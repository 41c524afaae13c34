"""Slow oracles of the additive columns and of fingerprints' subject, by exact fractions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from decimal import Context, Decimal
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_weights.measure.matrix_meter import MatrixMeasurement, MatrixMeter
from moe_weights.measure.settings import MeasureSettings
from tests.support.reference import (
    fractions_of,
    slow_abs_percentile,
    slow_group_ratios,
    slow_mean,
    slow_mean_abs,
    slow_rms,
    slow_std,
)

_DIGITS = Context(prec=80, Emin=-999_999, Emax=999_999)
_LARGEST = Fraction(float(np.finfo(np.float64).max))


def slow_measures(
    matrix: NDArray[Any], *, eps: float, group_sizes: Sequence[int], percentile: int = 95
) -> dict[str, float | None]:
    """Return every float column of a finite matrix (R, C) whose formula a person can check."""
    values = fractions_of(matrix)
    n, largest = len(values), max(map(abs, values))
    mean = sum(values, Fraction(0)) / n
    square = sum(value * value for value in values)
    second = sum((value - mean) ** 2 for value in values)
    fourth = sum((value - mean) ** 4 for value in values)
    rms = _root(Fraction(square) / n)
    mean_abs = sum(map(abs, values)) / n
    measures: dict[str, float | None] = {
        "mean": slow_mean(values),
        "std": slow_std(values),
        "mean_abs": slow_mean_abs(values),
        "rms": slow_rms(values),
        "max_abs": float(largest),
        "p50_abs": slow_abs_percentile(values, 50),
        "p99_abs": slow_abs_percentile(values, 99),
        "p999_abs": slow_abs_percentile(values, 99.9),
        "kurtosis": float(n * fourth / second**2 - 3) if second else None,
        "crest": _quotient(largest, rms),
        "aimer": _quotient(mean_abs, rms),
        "frobenius": _as_float(_root(square)),
    }
    for size in group_sizes:
        ratios = slow_group_ratios(matrix, size, eps)
        measures[f"g{size}_p{percentile}_outlier"] = slow_abs_percentile(ratios, percentile)
        measures[f"g{size}_max_outlier"] = float(max(ratios))
    cols = matrix.shape[1]
    for name, lines in (
        ("row", [values[start : start + cols] for start in range(0, n, cols)]),
        ("col", [values[column::cols] for column in range(cols)]),
    ):
        norms = [_root(sum(value * value for value in line)) for line in lines]
        centre = sum(norms, Fraction(0)) / len(norms)
        variance = sum((norm - centre) ** 2 for norm in norms) / len(norms)
        ordered = sorted(norms)
        half = len(norms) // 2
        median = ordered[half] if len(norms) % 2 else (ordered[half - 1] + ordered[half]) / 2
        measures[f"{name}_norm_cv"] = _quotient(_root(variance), centre)
        measures[f"{name}_norm_max_over_median"] = _quotient(ordered[-1], median)
    return measures


def slow_counts(matrix: NDArray[Any]) -> dict[str, int | None]:
    """Return the counts, element by element."""
    with np.errstate(invalid="ignore"):
        values = [float(value) for value in matrix.astype(np.float64).reshape(-1)]
    integers = matrix.reshape(-1).view(f"u{matrix.dtype.itemsize}").tolist()
    fraction_bits = {"bfloat16": 7, "float16": 10, "float32": 23, "float64": 52}
    width = 8 * matrix.dtype.itemsize
    exponents = [
        (integer & (2 ** (width - 1) - 1)) >> fraction_bits[matrix.dtype.name]
        for integer in integers
    ]
    pairs = list(zip(values, exponents, strict=True))
    return {
        "n_zero": sum(value == 0 for value in values),
        "n_denormal": sum(value != 0 and not exponent for value, exponent in pairs),
        "n_nan": sum(value != value for value in values),
        "n_inf": sum(abs(value) == float("inf") for value in values),
        "n_distinct": len(set(integers)) if width == 16 else None,
    }


def blocks_of(matrix: NDArray[Any], heights: Sequence[int]) -> Iterator[NDArray[Any]]:
    """Cut a matrix into copies of rows, by these heights again and again; copies die at once."""
    start = number = 0
    while start < len(matrix):
        height = heights[number % len(heights)]
        block = matrix[start : start + height].copy()
        yield block
        block.view("u1").fill(0x5A)
        start, number = start + height, number + 1


def meter_matrix(
    matrix: NDArray[Any],
    settings: MeasureSettings,
    heights: Sequence[int] = (10**9,),
    sampled: NDArray[np.int64] | None = None,
    **options: Any,
) -> tuple[MatrixMeasurement, int]:
    """Measure a matrix block by block; also return how many passes that took."""
    meter = MatrixMeter(*matrix.shape, matrix.dtype, settings, sampled, **options)
    for block in blocks_of(matrix, heights):
        meter.add(block)
    n_passes = 1
    while meter.needs_another_pass:
        for block in blocks_of(matrix, heights):
            meter.add_again(block)
        n_passes += 1
    return meter.finish(), n_passes


def _root(value: Fraction | int) -> Fraction:
    value = Fraction(value)
    quotient = _DIGITS.divide(Decimal(value.numerator), Decimal(value.denominator))
    return Fraction(_DIGITS.sqrt(quotient))


def _quotient(numerator: Fraction, denominator: Fraction) -> float | None:
    return _as_float(numerator / denominator) if denominator else None


def _as_float(value: Fraction) -> float | None:
    return float(value) if value <= _LARGEST else None
