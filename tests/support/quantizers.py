"""Slow oracles: MLX's quantisers by plain NumPy in float32, and sums of errors by exact fractions.

Codes are compared one value of a grid at a time and logarithms are taken in float64: nothing here
knows the bit tricks of the product.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

SINGLE = np.float32
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=np.float64)
E4M3 = np.arange(127, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

AFFINE = [("affine", bits, size) for bits in (1, 2, 3, 4, 5, 6, 8) for size in (32, 64, 128)]
EVERY_SCHEME = [*AFFINE, ("mxfp4", 4, 32), ("mxfp8", 8, 32), ("nvfp4", 4, 16)]


class Quantised(NamedTuple):
    """Codes (R, C), scales and biases (R, groups) and values (R, C) as float32 or bytes."""

    codes: NDArray[Any]
    scales: NDArray[Any]
    biases: NDArray[Any] | None
    values: NDArray[Any]


def slow_quantise(matrix: NDArray[Any], mode: str, bits: int, size: int) -> Quantised:
    """Quantise a finite matrix (R, C) as MLX 0.32.4 does on a CPU."""
    with np.errstate(all="ignore"):
        if mode == "affine":
            return _affine(matrix, bits, size)
        return _floating(matrix, mode, size)


def _rounded(numbers: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    return numbers.astype(dtype).astype(SINGLE)


def _affine(matrix: NDArray[Any], bits: int, size: int) -> Quantised:
    dtype, rows = matrix.dtype, len(matrix)
    weights = matrix.astype(SINGLE).reshape(-1, size)
    top = SINGLE(2**bits - 1)
    high, low = weights.max(axis=1, keepdims=True), weights.min(axis=1, keepdims=True)
    first_lowest = np.argmax(weights == low, axis=1)[:, None]
    low = np.take_along_axis(weights, first_lowest, axis=1)  # the first zero keeps its sign
    if bits == 1:
        step, offset = np.maximum(high - low, SINGLE(1e-7)), low
    else:
        step = np.maximum((high - low) / top, SINGLE(1e-7))
        low_is_far = np.abs(low) > np.abs(high)
        step = np.where(low_is_far, step, -step)
        edge = np.where(low_is_far, low, high)
        steps = np.rint(edge / step)
        step, offset = (
            np.where(steps != 0, edge / steps, step),
            np.where(steps != 0, edge, SINGLE(0)),
        )
    # A constant beyond 1e31 overflows in edge / step: its step becomes 0, its code 0 / 0.
    codes = np.nan_to_num(np.clip(np.rint((weights - offset) / step), 0, top), nan=0.0)
    scales, biases = _rounded(step, dtype), _rounded(offset, dtype)
    values = _rounded(_rounded((codes + 0) * scales, dtype) + biases, dtype)
    return Quantised(
        codes.astype(np.uint8).reshape(matrix.shape),
        scales.reshape(rows, -1),
        biases.reshape(rows, -1),
        values.reshape(matrix.shape),
    )


def _floating(matrix: NDArray[Any], mode: str, size: int) -> Quantised:
    dtype, rows = matrix.dtype, len(matrix)
    weights = matrix.astype(SINGLE).reshape(-1, size)
    top = SINGLE(448 if mode == "mxfp8" else 6)
    scales = _rounded(np.abs(weights).max(axis=1, keepdims=True) / top, dtype)
    if mode == "nvfp4":
        scale_codes = _e4m3_codes(scales)
        real = E4M3[scale_codes].astype(SINGLE)
        ratios = _rounded(weights / real, dtype)
    else:
        exponents = np.ceil(np.log2(scales.astype(np.float64)))
        exponents = np.where(scales == 0, 0, exponents).astype(np.int64)
        ratios = _rounded(weights / np.exp2(exponents.astype(SINGLE)), dtype)
        scale_codes = (exponents + 127 & 255).astype(np.uint8)  # MLX keeps the low byte
        real = _rounded(np.exp2(scale_codes.astype(SINGLE) - 127), BFLOAT16)
    if mode == "mxfp8":
        codes = _e4m3_codes(np.abs(ratios)) + np.where(np.signbit(ratios), 128, 0)
        grid = np.where(np.signbit(ratios), -1.0, 1.0) * E4M3[codes & 127]
    else:
        codes, grid = _e2m1_codes(ratios)
    values = _rounded(grid.astype(SINGLE) * real, BFLOAT16)
    return Quantised(
        codes.astype(np.uint8).reshape(matrix.shape),
        scale_codes.astype(np.uint8).reshape(rows, -1),
        None,
        values.reshape(matrix.shape),
    )


def _e4m3_codes(magnitudes: NDArray[Any]) -> NDArray[Any]:
    """Return the nearest of 127 codes; between two, the even one; beyond the last, the last."""
    flat = np.minimum(magnitudes.astype(np.float64), 448.0).reshape(-1)
    above = np.searchsorted(E4M3, flat).clip(0, 126)
    below = (above - 1).clip(0)
    to_above, to_below = E4M3[above] - flat, flat - E4M3[below]
    take_below = (to_below < to_above) | ((to_below == to_above) & (below % 2 == 0))
    return np.where(take_below, below, above).reshape(magnitudes.shape)


def _e2m1_codes(ratios: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return codes and values: the first entry of MLX's table at the least float32 distance."""
    table = np.concatenate([E2M1, -E2M1]).astype(SINGLE)
    distances = np.abs(ratios[..., None] - table)
    codes = np.argmin(np.where(np.isnan(distances), np.inf, distances), axis=-1)
    return codes, table[codes]


def slow_numbers(
    matrix: NDArray[Any], values: NDArray[Any], scales: NDArray[Any], biases: NDArray[Any] | None,
    *, mode: str, bits: int,
) -> dict[str, float | int | None]:  # fmt: skip
    """Return the numbers of a row with eps 0, by loops over Python floats.

    Args:
        matrix: (R, C) stored weights, not all zero.
        values: (R, C) reconstructed weights.
        scales: (R, groups) real scales.
        biases: (R, groups) or None.
        mode: Of the scheme.
        bits: Of the scheme.
    """
    stored = [float(one) for row in matrix for one in row]
    back = [float(one) for row in values for one in row]
    errors = [one - other for one, other in zip(back, stored, strict=True)]
    size = matrix.shape[1] // scales.shape[1]
    flat_scales = [float(one) for one in scales.reshape(-1)]
    flat_biases = [] if biases is None else [float(one) for one in biases.reshape(-1)]
    half_step_beyond = {"mxfp4": 7.0, "nvfp4": 7.0, "mxfp8": 464.0}.get(mode, 0.0)
    saturated = 0
    for place, weight in enumerate(stored):
        scale = flat_scales[place // size]
        ends = [-half_step_beyond * scale, half_step_beyond * scale]
        if flat_biases:
            ends = [flat_biases[place // size] + steps * scale for steps in (-0.5, 2**bits - 0.5)]
        saturated += weight < min(ends) or weight > max(ends)
    norm, noise = math.hypot(*stored), math.hypot(*errors)
    product = math.fsum(one * other for one, other in zip(back, stored, strict=True))
    return {
        "w_rel_fro": noise / norm,
        "w_rel_max": max(map(abs, errors)) / max(map(abs, stored)),
        "scale_mean": math.fsum(flat_scales) / len(flat_scales),
        "scale_max": max(flat_scales),
        "bias_mean": math.fsum(flat_biases) / len(flat_biases) if flat_biases else None,
        "bias_max": max(flat_biases) if flat_biases else None,
        "scale_abs_max": max(map(abs, flat_scales)),
        "sqnr_db": -20 * math.log10(noise / norm) if noise else None,
        "cosine": min(1.0, product / math.hypot(*back) / norm) if any(back) else None,
        "n_saturated": saturated,
        "n_zero_scale": flat_scales.count(0.0),
        "bits_per_weight": bits + (2 * 8 * matrix.dtype.itemsize if mode == "affine" else 8) / size,
    }
