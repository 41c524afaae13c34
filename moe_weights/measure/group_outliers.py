"""How far the largest weight of a quantisation group stands out from the group's mean."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_weights.columns import Cell, Column
from moe_weights.measure.order_statistics import percentiles_of
from moe_weights.measure.settings import MeasureSettings, percentile_text

_BLOCK_ELEMENTS = 2**20


def group_outlier_columns(settings: MeasureSettings) -> tuple[Column, ...]:
    """Two columns per group size: a percentile of the ratios, and the largest ratio."""
    columns = []
    for size in settings.group_sizes:
        percentile_name, max_name = _names(size, settings)
        ratio_text = f"max|w| / (mean|w| + eps) over groups of {size} consecutive columns"
        columns.append(
            Column(
                percentile_name,
                "float64",
                f"{settings.group_outlier_percentile}th percentile of {ratio_text}; "
                f"null when C is not divisible by {size}",
                "relative",
            )
        )
        columns.append(
            Column(
                max_name,
                "float64",
                f"largest {ratio_text}; null when C is not divisible by {size}",
                "relative",
            )
        )
    return tuple(columns)


def measure_group_outliers(
    matrix: NDArray[Any], settings: MeasureSettings, *, is_finite: bool
) -> dict[str, Cell]:
    """Measure the group ratios of one matrix.

    Args:
        matrix: (R, C), contiguous, any float dtype.
        settings: Group sizes, percentile and eps.
        is_finite: No element is NaN or infinite; otherwise every value is None.

    Returns:
        A value for every name of `group_outlier_columns`.
    """
    values: dict[str, Cell] = {}
    for size in settings.group_sizes:
        percentile_name, max_name = _names(size, settings)
        values[percentile_name] = values[max_name] = None
        if not is_finite or size <= 0 or matrix.shape[1] % size:
            continue
        ratios = _group_ratios(matrix, size, settings.eps)
        if not np.isfinite(ratios).all():  # a zero group without eps: undefined
            continue
        values[percentile_name] = percentiles_of(ratios, [settings.group_outlier_percentile])[0]
        values[max_name] = float(np.max(ratios))
    return values


def _names(size: int, settings: MeasureSettings) -> tuple[str, str]:
    percentile = percentile_text(settings.group_outlier_percentile)
    return f"g{size}_p{percentile}_outlier", f"g{size}_max_outlier"


def _group_ratios(matrix: NDArray[Any], size: int, eps: float) -> NDArray[np.float64]:
    """Return max|w| / (mean|w| + eps) of each group, (R * C / size,), float64."""
    rows, cols = matrix.shape
    groups_per_row = cols // size
    ratios = np.empty((rows, groups_per_row), dtype=np.float64)
    block_rows = max(1, _BLOCK_ELEMENTS // cols)
    for start in range(0, rows, block_rows):
        block = matrix[start : start + block_rows]
        magnitudes = np.abs(block.astype(np.float64)).reshape(len(block), groups_per_row, size)
        largest = np.max(magnitudes, axis=2)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            means = magnitudes.sum(axis=2) / size
            if not np.isfinite(means).all():  # float64 near its limit: divide before adding
                divided = np.minimum(np.divide(magnitudes, size).sum(axis=2), largest)
                means = np.where(np.isfinite(means), means, divided)
            ratios[start : start + block_rows] = largest / (means + eps)
    return ratios.reshape(-1)
