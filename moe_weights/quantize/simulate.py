"""One matrix under one scheme: the numbers of a quant_sim row, or why there are none."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_weights.columns import Cell
from moe_weights.quantize.error import ERROR_COLUMNS, SCALE_ABS_MAX, measure_quant_error
from moe_weights.quantize.round_trip import QuantBackend, SchemeSpec

_EMPTY: dict[str, Cell] = dict.fromkeys(
    [*(column.name for column in ERROR_COLUMNS), SCALE_ABS_MAX.name]
)


def as_quantised_dtype(matrix: NDArray[Any]) -> NDArray[Any]:
    """Return the matrix in the dtype it is quantised in: its own, or float32 for float64."""
    return matrix.astype(np.float32) if matrix.dtype == np.float64 else matrix


def simulate_scheme(
    matrix: NDArray[Any], scheme: SchemeSpec, backend: QuantBackend, eps: float
) -> dict[str, Cell]:
    """Quantise, dequantise and compare one matrix.

    Args:
        matrix: (R, C), finite; float16, bfloat16 or float32.
        scheme: How to quantise.
        backend: What quantises.
        eps: See `measure_quant_error`.

    Returns:
        The error columns plus `error`: null, or "<Type>: <message>" with every number null.
    """
    try:
        result = backend.round_trip(matrix, scheme)
        return measure_quant_error(matrix, result, eps) | {"error": None}
    except Exception as error:  # a scheme that fails must not take the run with it
        return _EMPTY | {"error": f"{type(error).__name__}: {error}"}


def not_simulated(cause: str) -> dict[str, Cell]:
    """Return the columns of a row that could not be simulated at all."""
    return _EMPTY | {"error": cause}
