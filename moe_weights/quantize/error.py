"""How far a quantised matrix is from the stored one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_weights.columns import Cell, Column
from moe_weights.quantize.round_trip import RoundTrip

_BLOCK_ELEMENTS = 2**20
_UNIT = "weight"

ERROR_COLUMNS = (
    Column("w_rel_fro", "float64", "||q(w) - w||_F / (||w||_F + eps), 0 = exact", "relative"),
    Column("w_rel_max", "float64", "max|q(w) - w| / (max|w| + eps), 0 = exact", "relative"),
    Column("scale_mean", "float64", "mean of the real scales; affine scales have a sign", _UNIT),
    Column("scale_max", "float64", "largest real scale", _UNIT),
    Column("bias_mean", "float64", "mean of the biases; null for modes without biases", _UNIT),
    Column("bias_max", "float64", "largest bias; null for modes without biases", _UNIT),
)
SCALE_ABS_MAX = Column("scale_abs_max", "float64", "largest |real scale|", _UNIT)


def measure_quant_error(matrix: NDArray[Any], result: RoundTrip, eps: float) -> dict[str, Cell]:
    """Compare the reconstructed weights with the stored ones, in float64.

    Args:
        matrix: (R, C) the weights that were quantised; finite.
        result: What came back.
        eps: Added to the denominators; unit: that of the weights.

    Returns:
        A value for each of `ERROR_COLUMNS` and `SCALE_ABS_MAX`; scales and biases that are not
        finite are None. A zero matrix that comes back as zeros has error 0.

    Raises:
        OverflowError: a reconstructed weight is not finite (the backend's own overflow).
    """
    weight = matrix.reshape(-1)
    reconstructed = result.values.reshape(-1)
    squares_error, squares_weight = [], []
    largest_error = largest_weight = 0.0
    for start in range(0, weight.size, _BLOCK_ELEMENTS):
        stored = weight[start : start + _BLOCK_ELEMENTS].astype(np.float64)
        error = reconstructed[start : start + _BLOCK_ELEMENTS].astype(np.float64) - stored
        squares_error.append(float(np.square(error).sum()))
        squares_weight.append(float(np.square(stored).sum()))
        # np.maximum keeps a NaN that Python's max would lose.
        largest_error = float(np.maximum(largest_error, np.max(np.abs(error))))
        largest_weight = max(largest_weight, float(np.max(np.abs(stored))))
    if not math.isfinite(largest_error):
        raise OverflowError("a reconstructed weight is not finite; the weights are near the limit")
    norm_error = math.sqrt(math.fsum(squares_error))
    norm_weight = math.sqrt(math.fsum(squares_weight))
    biases = result.biases
    return {
        "w_rel_fro": _relative(norm_error, norm_weight + eps),
        "w_rel_max": _relative(largest_error, largest_weight + eps),
        "scale_mean": _finite(result.scales.mean()),
        "scale_max": _finite(np.max(result.scales)),
        "bias_mean": None if biases is None else _finite(biases.mean()),
        "bias_max": None if biases is None else _finite(np.max(biases)),
        "scale_abs_max": _finite(np.max(np.abs(result.scales))),
    }


def _relative(error: float, denominator: float) -> float | None:
    if error == 0:
        return 0.0
    return _finite(error / denominator) if denominator else None


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
