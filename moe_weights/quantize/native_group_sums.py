"""What do the groups of a row add: scales, biases, and the weights beyond all codes?"""

from __future__ import annotations

from typing import Any

import numpy as np

from moe_weights.compiled import inlined
from moe_weights.quantize.native_exact_sums import add_line
from moe_weights.quantize.native_folds import (
    lane,
    largest_of_each,
    total,
)
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
)
from moe_weights.quantize.native_vectors import (
    bits,
    bits_of,
    choose,
    count,
    doubles,
    floats,
    floats_of,
    lanes_below,
    larger,
    load_floats,
    narrow,
    pattern_of,
    smaller,
    store_floats,
    trailing_zeros,
    widen,
)
from moe_weights.quantize.sum_places import (
    ABS_SCALE,
    ABS_WEIGHT,
    BIAS,
    BIAS_MAX,
    SATURATED,
    SCALE,
    SCALE_MAX,
    ZERO_SCALE,
)

_ZERO, _LOWEST, _HIGHEST = np.float32(0.0), np.float32(-np.inf), np.float32(np.inf)


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
def _count_beyond(
    data: Any,
    start: int,
    group: int,
    kind: int,
    groups: int,
    lowest: Any,
    highest: Any,
    scratch: Any,
) -> int:  # pragma: no cover
    """Count the weights of some of sixteen groups (bits of `groups`) that lie beyond a range."""
    lines = scratch.size // N_LINES
    store_floats(scratch, LEAST * lines, floats(_ZERO) - _round_down(doubles(0.0) - lowest))
    store_floats(scratch, MOST * lines, _round_down(highest))
    beyond = 0
    while groups:
        number = trailing_zeros(groups)
        groups &= groups - 1
        least = floats(scratch[LEAST * lines + number])
        most = floats(scratch[MOST * lines + number])
        begin = start + number * group
        for index in range(begin, begin + group, LANES):
            stored = load_weights(data, index, kind)
            beyond += count((stored < least) | (stored > most))
    return beyond


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
    # Least sizes but zero, with the sign turned.
    least_scale = floats(_LOWEST)
    least_bias = floats(_LOWEST)
    abs_weight = floats(_ZERO)
    for place in range(0, n_groups, LANES):
        here = lanes_below(n_groups - place)
        scale = load_floats(scratch, STORED_SCALE * lines + place)
        high = load_floats(scratch, HIGH * lines + place)
        low = floats(_ZERO) - high
        size = choose(here, without_sign(scale), floats(_ZERO))
        is_zero = size == floats(_ZERO)
        scale_sum += widen(choose(here, scale, floats(_ZERO)))
        scale_max = larger(choose(here, scale, floats(_LOWEST)), scale_max)
        abs_scale = larger(size, abs_scale)
        least_scale = larger(choose(is_zero, floats(_LOWEST), floats(_ZERO) - size), least_scale)
        bias = floats(_ZERO)
        if mode == MODE_AFFINE:
            bias = load_floats(scratch, STORED_BIAS * lines + place)
            low = load_floats(scratch, LOW * lines + place)
            abs_weight = larger(choose(here, without_sign(low), floats(_ZERO)), abs_weight)
            size = choose(here, without_sign(bias), floats(_ZERO))
            bias_sum += widen(choose(here, bias, floats(_ZERO)))
            bias_max = larger(choose(here, bias, floats(_LOWEST)), bias_max)
            abs_bias = larger(size, abs_bias)
            size = choose(size == floats(_ZERO), floats(_HIGHEST), size)
            least_bias = larger(floats(_ZERO) - size, least_bias)
        abs_weight = larger(choose(here, without_sign(high), floats(_ZERO)), abs_weight)
        zeros = pattern_of(here & is_zero)
        if zeros:
            sums[ZERO_SCALE] += count(here & is_zero)
        lowest, highest = _range_of_codes(mode, n_bits, scale, bias)
        clipped = pattern_of(here & ((widen(low) < lowest) | (widen(high) > highest)))
        if clipped:
            sums[SATURATED] += _count_beyond(
                data, start + place * group, group, kind, clipped, lowest, highest, scratch
            )
    found = largest_of_each(abs_scale, least_scale, scale_max, abs_weight)
    add_line(
        sums, SCALE, scratch, STORED_SCALE * lines, n_groups,
        total(scale_sum), float(lane(found, 0)), -float(lane(found, 1)),
    )  # fmt: skip
    sums[ABS_SCALE] = max(sums[ABS_SCALE], float(lane(found, 0)))
    sums[SCALE_MAX] = max(sums[SCALE_MAX], float(lane(found, 2)))
    sums[ABS_WEIGHT] = max(sums[ABS_WEIGHT], float(lane(found, 3)))
    if mode == MODE_AFFINE:
        found = largest_of_each(abs_bias, least_bias, bias_max, bias_max)
        add_line(
            sums, BIAS, scratch, STORED_BIAS * lines, n_groups,
            total(bias_sum), float(lane(found, 0)), -float(lane(found, 1)),
        )  # fmt: skip
        sums[BIAS_MAX] = max(sums[BIAS_MAX], float(lane(found, 2)))
