"""Compiled loops behind `affine_codes`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_weights.compiled import kernel


@kernel
def scale_blocks(
    codes: NDArray[Any],
    zeros: NDArray[Any],
    scales: NDArray[Any],
    biases: NDArray[Any],
    side: tuple[int, int],
    values: NDArray[Any],
) -> None:
    """Write (code - zero point) * scale (+ bias) for blocks of a matrix.

    Args:
        codes: (entries, R, C) uint8 or int8, contiguous.
        zeros: (entries, block rows, block cols) float32.
        scales: Like `zeros`.
        biases: Like `zeros`, or empty for none.
        side: (rows, cols) that share a scale; the last ones are cut.
        values: (entries * R * C,) float32; overwritten.
    """
    n_entries, rows, cols = codes.shape
    flat = codes.reshape(codes.size)
    for entry in range(n_entries):
        for row in range(rows):
            start = (entry * rows + row) * cols
            above = row // side[0]
            for group in range(scales.shape[2]):
                # Unsigned positions: negative ones would be looked for at every element.
                first = np.uint64(start + group * side[1])
                last = np.uint64(start + min((group + 1) * side[1], cols))
                zero, scale = zeros[entry, above, group], scales[entry, above, group]
                if biases.size:
                    bias = biases[entry, above, group]
                    for at in range(first, last):
                        values[at] = (np.float32(flat[at]) - zero) * scale + bias
                else:
                    for at in range(first, last):
                        values[at] = (np.float32(flat[at]) - zero) * scale


@kernel
def scale_indexed(
    codes: NDArray[Any],
    zeros: NDArray[Any],
    scales: NDArray[Any],
    group_of_column: NDArray[Any],
    rows_per_block: int,
    values: NDArray[Any],
) -> None:
    """Write (code - zero point) * scale for columns that belong to groups in any order.

    Args:
        codes: (entries, R, C) uint8 or int8, contiguous.
        zeros: (entries, block rows, groups) float32.
        scales: Like `zeros`.
        group_of_column: (entries, C) int64; each one names a group.
        rows_per_block: Rows that share a scale; the last ones are cut.
        values: (entries, R, C) float32; overwritten.
    """
    n_entries, rows, cols = codes.shape
    for entry in range(n_entries):
        groups = group_of_column[entry]
        for row in range(rows):
            own_zeros = zeros[entry, row // rows_per_block]
            own_scales = scales[entry, row // rows_per_block]
            line, written = codes[entry, row], values[entry, row]
            for col in range(cols):
                group = np.uint64(groups[col])
                written[col] = (np.float32(line[col]) - own_zeros[group]) * own_scales[group]
