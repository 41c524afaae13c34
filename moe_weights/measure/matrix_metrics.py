"""All columns that one matrix gives, and their values; the one entry to this room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_weights.columns import Cell, Column
from moe_weights.measure.group_outliers import group_outlier_columns, measure_group_outliers
from moe_weights.measure.magnitude import extra_columns, magnitude_columns, measure_magnitude
from moe_weights.measure.sampling import cached_sample_indices
from moe_weights.measure.settings import MeasureSettings


def metric_columns(settings: MeasureSettings) -> tuple[Column, ...]:
    """The metric columns of matrix_stats: fixed ones, group ratios, then additive ones."""
    return (*magnitude_columns(), *group_outlier_columns(settings), *extra_columns(settings))


def measure_matrix(
    matrix: NDArray[Any], settings: MeasureSettings, sample_folder: Path
) -> dict[str, Cell]:
    """Measure one matrix.

    Args:
        matrix: (R, C), contiguous; float16, bfloat16, float32 or float64; at least one element.
        settings: What to measure.
        sample_folder: Cache of drawn indices, used when percentiles are sampled.

    Returns:
        A value for every column of `metric_columns`.
    """
    sampled: NDArray[np.int64] | None = None
    if settings.sample_per_matrix is not None:
        sampled = cached_sample_indices(
            sample_folder, matrix.size, settings.sample_per_matrix, settings.sample_seed
        )
    values = measure_magnitude(matrix, settings, sampled)
    is_finite = values["mean"] is not None
    return values | measure_group_outliers(matrix, settings, is_finite=is_finite)
