"""Which codes, scales and weights come back from MLX's quantiser, and how far off are they?

One pass over a row finds the extremes of each group; sixteen groups at a time become scales. While
the row is still in the cache, a second pass quantises and reconstructs it, and a third adds up the
errors: it is the same for weights that something else brings back.

Source:
    MLX 0.32.4, CPU: `quantize` in `mlx/backend/cpu/quantized.cpp` (affine) and the graphs of
    `fp_quantize` and `fp_dequantize` in `mlx/ops.cpp`, which work in the dtype of the weights and
    reconstruct in bfloat16. Two things differ from older versions: the scale of the mx modes is
    rounded up to a power of two, and one bit takes the two extremes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from moe_weights.compiled import inlined, kernel
from moe_weights.quantize.native_group_sums import note_groups
from moe_weights.quantize.native_lanes import LANES
from moe_weights.quantize.native_rounding import (
    code_of_e2m1,
    code_of_e4m3,
    load_weights,
    round_to_bfloat16,
    round_to_e2m1,
    round_to_e2m1_by_distance,
    round_to_e4m3,
    round_to_kind,
)
from moe_weights.quantize.native_scales import (
    HIGH,
    MODE_AFFINE,
    MODE_MXFP8,
    MODE_NVFP4,
    N_LINES,
    OFFSET,
    ROOM_NBYTES,
    STEP,
    STORED_BIAS,
    STORED_SCALE,
    find_affine_scales,
    find_e4m3_scales,
    find_extremes,
    find_power_scales,
)
from moe_weights.quantize.native_sums import add_row
from moe_weights.quantize.native_vectors import (
    floats,
    larger,
    nearest,
    smaller,
    store_bytes,
    store_floats,
    to_integers,
)

_F = np.float32
_ZERO = _F(0.0)
# A weight beyond 2**24 times the largest nvfp4 scale: distances to 4 and 6 may round alike.
_FAR_BEYOND = _F(2.0**24 * 448)


@inlined
def _restore_row(
    data: Any,
    start: int,
    n_groups: int,
    group: int,
    kind: int,
    mode: int,
    n_bits: int,
    scratch: Any,
    values: Any,
    base: int,
    keeps: bool,
    codes: Any,
) -> None:  # pragma: no cover
    """Quantise one row whose scales are known, and write what comes back from `base` on."""
    lines = scratch.size // N_LINES
    top = _F((1 << n_bits) - 1)
    # Spans of a constant width leave no inner loop; a group has one, two or four of them.
    span = LANES if mode == MODE_NVFP4 else 2 * LANES
    shift = group // span >> 1
    for number in range(n_groups << shift):
        place = number >> shift
        first = start + number * span
        step_lanes = floats(scratch[STEP * lines + place])
        scale_lanes = floats(scratch[STORED_SCALE * lines + place])
        offset_lanes = floats(scratch[OFFSET * lines + place])
        bias_lanes = floats(scratch[STORED_BIAS * lines + place])
        for index in range(first, first + span, LANES):
            weights = load_weights(data, index, kind)
            if mode == MODE_AFFINE:
                steps = nearest((weights - offset_lanes) / step_lanes)
                grid = smaller(larger(steps, floats(_ZERO)), floats(top))
                restored = round_to_kind(grid * scale_lanes, kind)
                restored = round_to_kind(restored + bias_lanes, kind)
                if keeps:
                    store_bytes(codes, index, to_integers(grid))
            elif mode == MODE_MXFP8:
                grid = round_to_e4m3(weights / step_lanes)
                restored = round_to_bfloat16(grid * scale_lanes)
                if keeps:
                    store_bytes(codes, index, code_of_e4m3(grid))
            else:
                ratio = weights / step_lanes
                if mode == MODE_NVFP4:
                    ratio = round_to_kind(ratio, kind)
                if mode == MODE_NVFP4 and scratch[HIGH * lines + place] >= _FAR_BEYOND:
                    grid = round_to_e2m1_by_distance(ratio)
                else:
                    grid = round_to_e2m1(ratio)
                restored = grid * scale_lanes
                if keeps:
                    store_bytes(codes, index, code_of_e2m1(grid))
            store_floats(values, base + index - start, restored)


@kernel
def simulate_rows(
    data: Any,
    n_rows: int,
    n_cols: int,
    kind: int,
    mode: int,
    group: int,
    n_bits: int,
    sums: Any,
    keeps: bool,
    values: Any,
    codes: Any,
    scales: Any,
    biases: Any,
    scale_codes: Any,
) -> None:  # pragma: no cover
    """Quantise rows and add their errors to the sums; rows are added in order, each for itself.

    Args:
        data: (n_rows * n_cols * width,) uint8, read-only, the weights as stored.
        n_rows: Rows.
        n_cols: Columns, a multiple of `group`.
        kind: `KIND_*` of native_rounding.
        mode: `MODE_*` of native_scales.
        group: Columns that share a scale, a multiple of 16.
        n_bits: Bits per code; used by affine alone.
        sums: See sum_places; added to.
        keeps: Also write the arrays below; otherwise they are not touched.
        values: (n_rows * n_cols,) float32, reconstructed weights.
        codes: (n_rows * n_cols,) uint8.
        scales: (n_rows * n_groups,) float32, as reconstruction uses them.
        biases: (n_rows * n_groups,) float32; affine alone.
        scale_codes: (n_rows * n_groups,) uint8; the other modes.
    """
    affine = mode == MODE_AFFINE
    n_groups = n_cols // group
    lines = (n_groups + LANES - 1) // LANES * LANES
    scratch = np.zeros(N_LINES * lines, dtype=np.float32)
    room = np.empty(ROOM_NBYTES, dtype=np.uint8)
    row_codes = np.zeros(lines, dtype=np.uint8)
    if not keeps:
        values = np.empty(n_cols, dtype=np.float32)
    for row in range(n_rows):
        start = row * n_cols
        find_extremes(data, start, n_groups, group, kind, affine, n_bits, scratch, room)
        if affine:
            find_affine_scales(n_groups, kind, n_bits, scratch)
        elif mode == MODE_NVFP4:
            find_e4m3_scales(n_groups, kind, scratch, row_codes)
        else:
            find_power_scales(n_groups, kind, mode, scratch, row_codes)
        note_groups(data, start, n_groups, group, kind, mode, n_bits, scratch, sums)
        base = start if keeps else 0
        _restore_row(
            data, start, n_groups, group, kind, mode, n_bits, scratch, values, base, keeps, codes
        )
        add_row(data, start, n_cols, kind, values, base, sums)
        if keeps:
            for place in range(n_groups):
                scales[row * n_groups + place] = scratch[STORED_SCALE * lines + place]
                biases[row * n_groups + place] = scratch[STORED_BIAS * lines + place]
                scale_codes[row * n_groups + place] = row_codes[place]
