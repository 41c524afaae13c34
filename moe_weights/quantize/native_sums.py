"""How far are reconstructed weights from the stored ones, added up in a fixed order?

Sixteen lanes of float64 run along a row and are added at its end; rows are added in order with
compensation. So the sums do not depend on how rows were cut into blocks, nor on the processor.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from moe_weights.compiled import inlined, kernel
from moe_weights.quantize.native_folds import (
    lane,
    largest,
    totals,
)
from moe_weights.quantize.native_group_sums import note_groups
from moe_weights.quantize.native_lanes import LANES
from moe_weights.quantize.native_rounding import load_weights
from moe_weights.quantize.native_scales import (
    MODE_AFFINE,
    N_LINES,
    ROOM_NBYTES,
    STORED_BIAS,
    STORED_SCALE,
    find_extremes,
)
from moe_weights.quantize.native_vectors import (
    add_product,
    doubles,
    larger,
    load_floats,
    magnitude,
    widen,
)
from moe_weights.quantize.sum_places import (
    ABS_ERROR,
    ERROR_SQUARE,
    PRODUCT,
    RESTORED_SQUARE,
    WEIGHT_SQUARE,
)


@inlined
def add_to(sums: Any, place: int, value: float) -> None:  # pragma: no cover
    """Add to a sum and keep what rounding took in the place behind it (Neumaier)."""
    before = sums[place]
    after = before + value
    if abs(before) >= abs(value):
        sums[place + 1] += (before - after) + value
    else:
        sums[place + 1] += (value - after) + before
    sums[place] = after


@inlined
def compare(
    weights: Any,
    restored: Any,
    mode: int,
    error_square: Any,
    weight_square: Any,
    restored_square: Any,
    product: Any,
    abs_error: Any,
) -> Any:  # pragma: no cover
    """Add sixteen weights, and what has come back of them, to the sums of their row."""
    stored = widen(weights)
    back = widen(restored)
    error = back - stored
    error_square = add_product(error, error, error_square)
    weight_square = add_product(stored, stored, weight_square)
    if mode != MODE_AFFINE:  # see ErrorSums
        restored_square = add_product(back, back, restored_square)
    product = add_product(back, stored, product)
    abs_error = larger(magnitude(error), abs_error)
    return error_square, weight_square, restored_square, product, abs_error


@inlined
def add_row(
    sums: Any,
    error_square: Any,
    weight_square: Any,
    restored_square: Any,
    product: Any,
    abs_error: Any,
) -> None:  # pragma: no cover
    """Add the sums of a row to those of the matrix."""
    found = totals(error_square, weight_square, restored_square, product)
    add_to(sums, ERROR_SQUARE, lane(found, 0))
    add_to(sums, WEIGHT_SQUARE, lane(found, 1))
    add_to(sums, RESTORED_SQUARE, lane(found, 2))
    add_to(sums, PRODUCT, lane(found, 3))
    sums[ABS_ERROR] = max(sums[ABS_ERROR], largest(abs_error))


@kernel
def add_errors(
    data: Any,
    n_rows: int,
    n_cols: int,
    kind: int,
    mode: int,
    group: int,
    n_bits: int,
    values: Any,
    scales: Any,
    biases: Any,
    sums: Any,
) -> None:  # pragma: no cover
    """Add the errors of weights that something else has reconstructed.

    Args:
        data: (n_rows * n_cols * width,) uint8, read-only, the weights as stored.
        n_rows: Rows.
        n_cols: Columns, a multiple of `group`.
        kind: `KIND_*` of native_rounding.
        mode: `MODE_*` of native_scales.
        group: Columns that share a scale, a multiple of 16.
        n_bits: Bits per code; used by affine alone.
        values: (n_rows * n_cols,) float32, the reconstructed weights.
        scales: (n_rows * n_groups,) float32, the real scales.
        biases: (n_rows * n_groups,) float32; zeros for modes without them.
        sums: See sum_places; added to.
    """
    n_groups = n_cols // group
    lines = (n_groups + LANES - 1) // LANES * LANES
    scratch = np.zeros(N_LINES * lines, dtype=np.float32)
    room = np.empty(ROOM_NBYTES, dtype=np.uint8)
    for row in range(n_rows):
        start = row * n_cols
        find_extremes(
            data, start, n_groups, group, kind, mode == MODE_AFFINE, n_bits, scratch, room
        )
        for place in range(n_groups):
            scratch[STORED_SCALE * lines + place] = scales[row * n_groups + place]
            scratch[STORED_BIAS * lines + place] = biases[row * n_groups + place]
        note_groups(data, start, n_groups, group, kind, mode, n_bits, scratch, sums)
        error_square = doubles(0.0)
        weight_square = doubles(0.0)
        restored_square = doubles(0.0)
        product = doubles(0.0)
        abs_error = doubles(0.0)
        for index in range(start, start + n_cols, LANES):
            weights, restored = load_weights(data, index, kind), load_floats(values, index)
            error_square, weight_square, restored_square, product, abs_error = compare(
                weights, restored, mode,
                error_square, weight_square, restored_square, product, abs_error,
            )  # fmt: skip
        add_row(sums, error_square, weight_square, restored_square, product, abs_error)
