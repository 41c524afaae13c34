"""Matrices for tests, and the settings they are measured with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import TestCase

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from moe_weights.columns import Cell
from moe_weights.measure.matrix_metrics import measure_matrix
from moe_weights.measure.settings import MeasureSettings

DTYPES: dict[str, np.dtype[Any]] = {
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}
SIXTEEN_BIT = ("bfloat16", "float16")

_NOWHERE = Path("no samples are drawn")


def make_settings(**changes: Any) -> MeasureSettings:
    """Return the settings of the template config, with changes."""
    values: dict[str, Any] = {
        "eps": 1e-12,
        "percentiles_abs": (50.0, 99.0, 99.9),
        "group_outlier_percentile": 95.0,
        "group_sizes": (32, 64),
        "sample_per_matrix": None,
        "sample_seed": 1337,
    }
    return MeasureSettings(**(values | changes))


def normal_matrix(
    rows: int, cols: int, dtype: str = "float32", *, sigma: float = 1.0, seed: int = 0
) -> NDArray[Any]:
    """Return normal weights (R, C)."""
    drawn = np.random.default_rng(seed).normal(0.0, sigma, (rows, cols))
    return np.ascontiguousarray(drawn.astype(DTYPES[dtype]))


def matrix_of(rows: list[list[float]], dtype: str = "float32") -> NDArray[Any]:
    """Return a literal matrix (R, C)."""
    return np.array(rows, dtype=np.float64).astype(DTYPES[dtype])


def measure(
    matrix: NDArray[Any], *, sample_folder: Path = _NOWHERE, **changes: Any
) -> dict[str, Cell]:
    """Measure one matrix under the template's settings, with changes."""
    return measure_matrix(matrix, make_settings(**changes), sample_folder)


def assert_close(
    test: TestCase,
    found: Mapping[str, Cell],
    expected: Mapping[str, Cell],
    *,
    relative: float = 1e-12,
) -> None:
    """Compare every expected number, relative to its own size; None must be None."""
    for name, number in expected.items():
        cell = found[name]
        if not isinstance(number, float):
            test.assertEqual(cell, number, name)
            continue
        assert isinstance(cell, float), f"{name} is {cell!r}"
        difference = abs(cell - number)
        test.assertLessEqual(difference, relative * abs(number), f"{name}: {cell} {number}")
