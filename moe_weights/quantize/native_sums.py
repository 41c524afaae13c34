"""How far are reconstructed weights from the stored ones, added up in a fixed order?

Sixteen lanes of float64 run along a stretch of a row and are added at its end; stretches are added
in order with compensation. So the sums do not depend on how rows were cut into blocks, nor on the
processor.
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
from moe_weights.quantize.native_rounding import KIND_BFLOAT16, load_weights
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

# Columns: no lane adds so many numbers that rounding shows. Backends that cut a long row cut it at
# a multiple of it.
_STRETCH = 2**13


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
def _add_row(
    data: Any, start: int, n_cols: int, kind: int, values: Any, base: int, sums: Any
) -> None:  # pragma: no cover
    for first in range(0, n_cols, _STRETCH):
        error_square = doubles(0.0)
        weight_square = doubles(0.0)
        restored_square = doubles(0.0)
        product = doubles(0.0)
        abs_error = doubles(0.0)
        for number in range(first // LANES, min(first + _STRETCH, n_cols) // LANES):
            stored = widen(load_weights(data, start + number * LANES, kind))
            restored = widen(load_floats(values, base + number * LANES))
            error = restored - stored
            error_square = add_product(error, error, error_square)
            weight_square = add_product(stored, stored, weight_square)
            restored_square = add_product(restored, restored, restored_square)
            product = add_product(restored, stored, product)
            abs_error = larger(magnitude(error), abs_error)
        found = totals(error_square, weight_square, restored_square, product)
        add_to(sums, ERROR_SQUARE, lane(found, 0))
        add_to(sums, WEIGHT_SQUARE, lane(found, 1))
        add_to(sums, RESTORED_SQUARE, lane(found, 2))
        add_to(sums, PRODUCT, lane(found, 3))
        sums[ABS_ERROR] = max(sums[ABS_ERROR], largest(abs_error))


@inlined
def add_row(
    data: Any, start: int, n_cols: int, kind: int, values: Any, base: int, sums: Any
) -> None:  # pragma: no cover
    """Add a row of weights, and what has come back of them, to the sums of the matrix.

    Args:
        data: (n_rows * n_cols * width,) uint8, read-only, the weights as stored.
        start: Number of the first weight of the row.
        n_cols: Columns, a multiple of 16.
        kind: `KIND_*` of native_rounding.
        values: float32, the reconstructed weights.
        base: Where those of the row begin.
        sums: See sum_places; added to.
    """
    if kind == KIND_BFLOAT16:  # a constant: the most common dtype gets a loop of its own
        _add_row(data, start, n_cols, KIND_BFLOAT16, values, base, sums)
    else:
        _add_row(data, start, n_cols, kind, values, base, sums)


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
        add_row(data, start, n_cols, kind, values, start, sums)
