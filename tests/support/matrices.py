"""Matrices for tests, and the settings they are measured with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from unittest import TestCase

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from moe_weights.columns import Cell
from moe_weights.measure.matrix_meter import MatrixMeter
from moe_weights.measure.sampling import sample_indices
from moe_weights.measure.settings import MeasureSettings
from moe_weights.quantize.round_trip import QuantBackend, SchemeSpec
from moe_weights.quantize.simulate import SchemeMeter

DTYPES: dict[str, np.dtype[Any]] = {
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}
SIXTEEN_BIT = ("bfloat16", "float16")


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


def measure(matrix: NDArray[Any], **changes: Any) -> dict[str, Cell]:
    """Measure one matrix in one block under the template's settings, with changes."""
    settings = make_settings(**changes)
    sampled = None
    if settings.sample_per_matrix is not None:
        sampled = sample_indices(matrix.size, settings.sample_per_matrix, settings.sample_seed)
    meter = MatrixMeter(*matrix.shape, matrix.dtype, settings, sampled)
    meter.add(matrix)
    while meter.needs_another_pass:
        meter.add_again(matrix)
    return meter.finish().values


def simulate(
    matrix: NDArray[Any], scheme: SchemeSpec, backend: QuantBackend, eps: float
) -> dict[str, Cell]:
    """Simulate one matrix under one scheme, in one block."""
    meter = SchemeMeter(*matrix.shape, matrix.dtype, scheme, backend, eps)
    meter.add(matrix)
    return meter.finish()


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
