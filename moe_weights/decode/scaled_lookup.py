"""Codes that fill whole bytes, scaled by blocks: value = table[code] * scale (+ bias), in one pass.

A table has a row for each byte and a column for each code in it, so that FP8, FP4 and packed
integers are done alike. Every product and sum is rounded to float32 once, as NumPy would.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

_NO_BIASES = np.empty((0, 0, 0), dtype=np.float32)


def scale_codes(
    codes: NDArray[np.uint8],
    table: NDArray[np.float32],
    scales: NDArray[np.float32],
    block: tuple[int, int],
    biases: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Return the values of scaled codes.

    Args:
        codes: (..., R, bytes).
        table: (256, k) values of the k codes in each byte; k is 1 or 2.
        scales: One per block, (..., ceil(R / rows), ceil(bytes * k / cols)) or anything of as many
            numbers; a single one counts for all.
        block: (rows, cols) that share a scale; blocks at ragged edges are cut. k divides the
            columns unless one block has them all.
        biases: Added to the product; as many as scales.

    Returns:
        (..., R, bytes * k) contiguous.
    """
    lead, (rows, n_bytes) = codes.shape[:-2], codes.shape[-2:]
    per_byte = table.shape[1]
    n_entries, n_cols = math.prod(lead), n_bytes * per_byte
    values = np.empty((*lead, rows, n_cols), dtype=np.float32)
    if not values.size:
        return values
    side = min(block[0], rows), min(block[1], n_cols)
    grid = n_entries, -(-rows // side[0]), -(-n_cols // side[1])
    # Plans claim tensors without decoding any; they need not wait for a compiler to load.
    from moe_weights.decode.lookup_kernels import scale_bytes, scale_pairs

    scale = scale_bytes if per_byte == 1 else scale_pairs
    scale(
        np.ascontiguousarray(codes).reshape(n_entries, rows, n_bytes),
        np.ascontiguousarray(table).reshape(-1),
        _on_grid(scales, grid),
        _NO_BIASES if biases is None else _on_grid(biases, grid),
        (side[0], side[1] // per_byte),
        values.reshape(-1),
    )
    return values


def scale_centred_codes(
    codes: NDArray[np.uint8],
    zeros: NDArray[np.float32],
    scales: NDArray[np.float32],
    group_of_column: NDArray[np.int64],
) -> NDArray[np.float32]:
    """Return (code - zero point) * scale.

    Args:
        codes: (R, C).
        zeros: (R, groups) zero points.
        scales: (R, groups).
        group_of_column: (C,) group of each column; the caller has checked that it exists.

    Returns:
        (R, C) contiguous.
    """
    from moe_weights.decode.lookup_kernels import scale_groups  # see `scale_codes`

    values = np.empty(codes.shape, dtype=np.float32)
    scale_groups(
        np.ascontiguousarray(codes),
        np.ascontiguousarray(zeros),
        np.ascontiguousarray(scales),
        np.ascontiguousarray(group_of_column, dtype=np.int64),
        values,
    )
    return values


def _on_grid(numbers: NDArray[np.float32], grid: tuple[int, int, int]) -> NDArray[np.float32]:
    if numbers.size == 1:
        return np.full(grid, numbers.reshape(-1)[0], dtype=np.float32)
    return np.ascontiguousarray(numbers, dtype=np.float32).reshape(grid)
