"""Codes that fill whole bytes, scaled by blocks: value = table[code] * scale, in one pass.

A table has a row for each byte and a column for each code in it, so that FP8, FP4 and NF4 are done
alike. Every product is rounded to float32 once, as NumPy would.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from moe_weights.decode.block_scale import on_grid


def scale_codes(
    codes: NDArray[np.uint8],
    table: NDArray[np.float32],
    scales: NDArray[np.float32],
    block: tuple[int, int],
) -> NDArray[np.float32]:
    """Return the values of scaled codes.

    Args:
        codes: (..., R, bytes).
        table: (256, k) values of the k codes in each byte; k is 1 or 2.
        scales: One per block, (..., ceil(R / rows), ceil(bytes * k / cols)) or anything of as many
            numbers; a single one counts for all.
        block: (rows, cols) that share a scale; blocks at ragged edges are cut. k divides the
            columns unless one block has them all.

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
        on_grid(scales, grid),
        (side[0], side[1] // per_byte),
        values.reshape(-1),
    )
    return values
