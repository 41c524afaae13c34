"""How far are reconstructed weights from the stored ones, added up in a fixed order?

Sixteen lanes of float64 run along a row and are added at its end; rows are added in order with
compensation. So the sums do not depend on how rows were cut into blocks, nor on the processor.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from moe_weights.compiled import inlined, kernel
from moe_weights.quantize.native_exact_sums import add_line
from moe_weights.quantize.native_lanes import LANES
from moe_weights.quantize.native_rounding import load_weights, without_sign
from moe_weights.quantize.native_scales import (
    HIGH,
    LEAST,
    LOW,
    MODE_AFFINE,
    MODE_MXFP8,
    MOST,
    N_LINES,
    STORED_BIAS,
    STORED_SCALE,
    find_extremes,
)
from moe_weights.quantize.native_vectors import (
    add_product,
    bits,
    bits_of,
    choose,
    count,
    doubles,
    floats,
    floats_of,
    lanes_below,
    larger,
    largest,
    largest_double,
    load_floats,
    magnitude,
    narrow,
    pattern_of,
    smaller,
    store_floats,
    total,
    trailing_zeros,
    widen,
)
from moe_weights.quantize.sum_places import (
    ABS_ERROR,
    ABS_SCALE,
    ABS_WEIGHT,
    BIAS,
    BIAS_MAX,
    ERROR_SQUARE,
    PRODUCT,
    RESTORED_SQUARE,
    SATURATED,
    SCALE,
    SCALE_MAX,
    WEIGHT_SQUARE,
    ZERO_SCALE,
)

_ZERO, _LOWEST, _HIGHEST = np.float32(0.0), np.float32(-np.inf), np.float32(np.inf)


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
def _range_of_codes(mode: int, n_bits: int, scale: Any, bias: Any) -> Any:  # pragma: no cover
    """Return the least and the largest weights that codes stand for, half a step included.

    The step is that between the last two codes: 2 for E2M1 (4 and 6), 32 for E4M3 (416 and 448).
    """
    wide = widen(scale)
    if mode == MODE_AFFINE:
        one = widen(bias) - wide * doubles(0.5)
        other = widen(bias) + wide * doubles((1 << n_bits) - 0.5)
        lowest, highest = smaller(one, other), larger(one, other)
    else:
        highest = wide * doubles(464.0 if mode == MODE_MXFP8 else 7.0)
        lowest = doubles(0.0) - highest
    return lowest, highest


@inlined
def _round_down(lanes: Any) -> Any:  # pragma: no cover
    """Return the largest floats that are not above doubles: the same floats lie beyond both."""
    near = narrow(lanes)
    pattern = bits_of(near)
    below = choose(near > floats(_ZERO), pattern - bits(1), pattern + bits(1))
    below = choose(near == floats(_ZERO), bits(0x80000001), below)
    return choose(widen(near) > lanes, floats_of(below), near)


@inlined
def note_groups(
    data: Any,
    start: int,
    n_groups: int,
    group: int,
    kind: int,
    mode: int,
    n_bits: int,
    scratch: Any,
    sums: Any,
) -> None:  # pragma: no cover
    """Add up the scales and biases of a row, and count the weights beyond all codes.

    Args:
        data: See `add_errors`.
        start: Number of the first weight of the row.
        n_groups: Groups of the row.
        group: Columns that share a scale.
        kind: `KIND_*`.
        mode: `MODE_*`.
        n_bits: Bits per code.
        scratch: The lines of native_scales, with extremes and what is stored.
        sums: See sum_places.
    """
    lines = scratch.size // N_LINES
    scale_sum = doubles(0.0)
    bias_sum = doubles(0.0)
    scale_max = floats(_LOWEST)
    bias_max = floats(_LOWEST)
    abs_scale = floats(_ZERO)
    abs_bias = floats(_ZERO)
    least_scale = floats(_HIGHEST)
    least_bias = floats(_HIGHEST)
    abs_weight = floats(_ZERO)
    for place in range(0, n_groups, LANES):
        here = lanes_below(n_groups - place)
        scale = load_floats(scratch, STORED_SCALE * lines + place)
        bias = load_floats(scratch, STORED_BIAS * lines + place)
        high = load_floats(scratch, HIGH * lines + place)
        low = floats(_ZERO) - high
        if mode == MODE_AFFINE:
            low = load_floats(scratch, LOW * lines + place)
            abs_weight = larger(choose(here, without_sign(low), floats(_ZERO)), abs_weight)
        abs_weight = larger(choose(here, without_sign(high), floats(_ZERO)), abs_weight)
        scale_sum += widen(choose(here, scale, floats(_ZERO)))
        bias_sum += widen(choose(here, bias, floats(_ZERO)))
        scale_max = larger(choose(here, scale, floats(_LOWEST)), scale_max)
        bias_max = larger(choose(here, bias, floats(_LOWEST)), bias_max)
        size = choose(here, without_sign(scale), floats(_ZERO))
        abs_scale = larger(size, abs_scale)
        least_scale = smaller(choose(size == floats(_ZERO), floats(_HIGHEST), size), least_scale)
        size = choose(here, without_sign(bias), floats(_ZERO))
        abs_bias = larger(size, abs_bias)
        least_bias = smaller(choose(size == floats(_ZERO), floats(_HIGHEST), size), least_bias)
        sums[ZERO_SCALE] += count(here & (scale == floats(_ZERO)))
        lowest, highest = _range_of_codes(mode, n_bits, scale, bias)
        store_floats(
            scratch, LEAST * lines + place, floats(_ZERO) - _round_down(doubles(0.0) - lowest)
        )
        store_floats(scratch, MOST * lines + place, _round_down(highest))
        clipped = pattern_of(here & ((widen(low) < lowest) | (widen(high) > highest)))
        while clipped:
            number = place + trailing_zeros(clipped)
            clipped &= clipped - 1
            least = floats(scratch[LEAST * lines + number])
            most = floats(scratch[MOST * lines + number])
            begin = start + number * group
            beyond = 0
            for index in range(begin, begin + group, LANES):
                stored = load_weights(data, index, kind)
                beyond += count((stored < least) | (stored > most))
            sums[SATURATED] += beyond
    add_line(
        sums, SCALE, scratch[STORED_SCALE * lines : STORED_SCALE * lines + n_groups],
        total(scale_sum), float(largest(abs_scale)), -float(largest(floats(_ZERO) - least_scale)),
    )  # fmt: skip
    if mode == MODE_AFFINE:
        add_line(
            sums, BIAS, scratch[STORED_BIAS * lines : STORED_BIAS * lines + n_groups],
            total(bias_sum), float(largest(abs_bias)), -float(largest(floats(_ZERO) - least_bias)),
        )  # fmt: skip
    sums[SCALE_MAX] = max(sums[SCALE_MAX], float(largest(scale_max)))
    sums[BIAS_MAX] = max(sums[BIAS_MAX], float(largest(bias_max)))
    sums[ABS_SCALE] = max(sums[ABS_SCALE], float(largest(abs_scale)))
    sums[ABS_WEIGHT] = max(sums[ABS_WEIGHT], float(largest(abs_weight)))


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
    add_to(sums, ERROR_SQUARE, total(error_square))
    add_to(sums, WEIGHT_SQUARE, total(weight_square))
    add_to(sums, RESTORED_SQUARE, total(restored_square))
    add_to(sums, PRODUCT, total(product))
    sums[ABS_ERROR] = max(sums[ABS_ERROR], largest_double(abs_error))


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
    for row in range(n_rows):
        start = row * n_cols
        find_extremes(data, start, n_groups, group, kind, mode == MODE_AFFINE, n_bits, scratch)
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
