"""Which scales does MLX's quantiser give the groups of a row?

The extremes of each group come first; then sixteen groups at a time become scales. The `Source` of
native_kernel says where the rules come from.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from moe_weights.compiled import inlined
from moe_weights.quantize.native_folds import (
    higher,
    highest_halves,
    highest_words,
    lower,
    lowest_halves,
    lowest_words,
)
from moe_weights.quantize.native_lanes import LANES
from moe_weights.quantize.native_rounding import (
    KIND_FLOAT32,
    code_of_e4m3,
    load_weights,
    round_to_e4m3,
    round_to_kind,
    weights_of,
    without_sign,
)
from moe_weights.quantize.native_vectors import (
    bits,
    bits_of,
    choose,
    floats,
    floats_of,
    in_order,
    larger,
    load_floats,
    load_halves,
    load_words,
    nearest,
    pattern_of,
    pattern_without_sign,
    store_bytes,
    store_floats,
    store_halves,
    store_words,
    trailing_zeros,
    widen_halves,
)

MODE_AFFINE, MODE_MXFP4, MODE_MXFP8, MODE_NVFP4 = 0, 1, 2, 3
# Lines of the scratch: of each group its extremes, what weights are divided by and how much is
# taken off before, and what is stored; and of sixteen groups the range of the codes. The modes
# other than affine have no LOW, OFFSET and STORED_BIAS.
LOW, HIGH, STEP, OFFSET, STORED_SCALE, STORED_BIAS, LEAST, MOST, N_LINES = 0, 1, 2, 3, 4, 5, 6, 7, 8
# What sixteen groups leave when each is folded into sixteen lanes, twice: large and small ones.
ROOM_NBYTES = 2 * LANES * LANES * 4

_F = np.float32
_ZERO, _NEGATIVE_ZERO, _INFINITE = _F(0.0), _F(-0.0), _F(np.inf)
_SMALLEST_STEP = _F(1e-7)
_E2M1_LARGEST, _E4M3_LARGEST = _F(6.0), _F(448.0)
_TWO_TO_64 = _F(2.0**64)


@inlined
def _first_zero(data: Any, begin: int, group: int, kind: int) -> Any:  # pragma: no cover
    """Return the first zero of a group that has one, signed: MLX keeps it as the smallest."""
    found = _ZERO
    for index in range(begin, begin + group, LANES):
        weights = load_weights(data, index, kind)
        zeros = pattern_of(weights == floats(_ZERO))
        if zeros:
            positive = pattern_of(bits_of(weights) == bits(0))
            first_is_positive = trailing_zeros(positive) == trailing_zeros(zeros)
            found = _ZERO if first_is_positive else _NEGATIVE_ZERO
            break
    return found


@inlined
def _fold_group(
    load: Any, store: Any, data: Any, begin: int, group: int, affine: bool, number: int, room: Any
) -> None:  # pragma: no cover
    """Write the extremes of a group, folded into sixteen lanes."""
    if affine:
        low = in_order(load(data, begin))
        high = low
        for part in range(1, group // LANES):
            pattern = in_order(load(data, begin + part * LANES))
            low = lower(pattern, low)
            high = higher(pattern, high)
        store(room, LANES * (LANES + number), low)
    else:
        high = pattern_without_sign(load(data, begin))
        for part in range(1, group // LANES):
            pattern = pattern_without_sign(load(data, begin + part * LANES))
            high = higher(pattern, high)
    store(room, LANES * number, high)


@inlined
def find_extremes(
    data: Any,
    start: int,
    n_groups: int,
    group: int,
    kind: int,
    affine: bool,
    n_bits: int,
    scratch: Any,
    room: Any,
) -> None:  # pragma: no cover
    """Write the smallest and largest weight of each group, or the largest magnitude.

    Patterns are compared as integers: sixteen bits wide, two fit where one float does. Nothing is
    promised of groups with NaN; `ErrorSums` knows of them.
    """
    lines = scratch.size // N_LINES
    for place in range(0, n_groups, LANES):
        for number in range(LANES):
            # Lanes beyond the last group take that one once more; no one reads them.
            begin = start + min(place + number, n_groups - 1) * group
            if kind == KIND_FLOAT32:
                _fold_group(load_words, store_words, data, begin, group, affine, number, room)
            else:
                _fold_group(load_halves, store_halves, data, begin, group, affine, number, room)
        if kind == KIND_FLOAT32:
            high = highest_words(room, 0)
            low = high
            if affine:
                high, low = in_order(high), in_order(lowest_words(room, 1))
        else:
            half = highest_halves(room, 0)
            high = widen_halves(half)
            low = high
            if affine:
                high = widen_halves(in_order(half))
                low = widen_halves(in_order(lowest_halves(room, 1)))
        store_floats(scratch, HIGH * lines + place, weights_of(high, kind))
        if affine:
            store_floats(scratch, LOW * lines + place, weights_of(low, kind))
    if affine and n_bits == 1:  # else a zero edge is not kept
        for place in range(n_groups):
            if scratch[LOW * lines + place] == _ZERO:
                begin = start + place * group
                scratch[LOW * lines + place] = _first_zero(data, begin, group, kind)


@inlined
def find_affine_scales(
    n_groups: int, kind: int, n_bits: int, scratch: Any
) -> None:  # pragma: no cover
    """From the extremes: step and offset in float32, and both as stored."""
    lines = scratch.size // N_LINES
    top = floats(_F((1 << n_bits) - 1))
    for place in range(0, n_groups, LANES):
        low = load_floats(scratch, LOW * lines + place)
        high = load_floats(scratch, HIGH * lines + place)
        step = larger((high - low) / top, floats(_SMALLEST_STEP))
        offset = low
        if n_bits > 1:
            # The edge that is farther from zero is met exactly; from there steps go to the other.
            is_low = without_sign(low) > without_sign(high)
            step = choose(is_low, step, floats(_ZERO) - step)
            edge = choose(is_low, low, high)
            steps_to_zero = nearest(edge / step)
            reaches = steps_to_zero != floats(_ZERO)
            step = choose(reaches, edge / steps_to_zero, step)
            offset = choose(reaches, edge, floats(_ZERO))
        store_floats(scratch, STEP * lines + place, step)
        store_floats(scratch, OFFSET * lines + place, offset)
        store_floats(scratch, STORED_SCALE * lines + place, round_to_kind(step, kind))
        store_floats(scratch, STORED_BIAS * lines + place, round_to_kind(offset, kind))


@inlined
def find_power_scales(
    n_groups: int, kind: int, mode: int, scratch: Any, codes: Any
) -> None:  # pragma: no cover
    """From the largest magnitudes: powers of two that bring them within the range of the codes."""
    lines = scratch.size // N_LINES
    top = floats(_E4M3_LARGEST if mode == MODE_MXFP8 else _E2M1_LARGEST)
    for place in range(0, n_groups, LANES):
        scale = round_to_kind(load_floats(scratch, HIGH * lines + place) / top, kind)
        is_denormal = bits_of(scale) < bits(0x00800000)
        pattern = bits_of(choose(is_denormal, scale * floats(_TWO_TO_64), scale))
        has_fraction = (pattern & bits(0x7FFFFF)) != bits(0)
        code = (pattern >> bits(23)) + choose(has_fraction, bits(1), bits(0))
        code = choose(is_denormal, code - bits(64), code)
        code = choose(bits_of(scale) == bits(0), bits(127), code)
        is_normal = (code - bits(1)) < bits(254)
        power = choose(is_normal, code << bits(23), bits(1) << ((code + bits(22)) & bits(31)))
        store_floats(scratch, STEP * lines + place, floats_of(power))
        # MLX keeps the low byte: below 2**-127 the scale comes back as a huge one.
        stored = code & bits(255)
        store_bytes(codes, place, stored)
        back = choose(stored == bits(0), bits(0x00400000), stored << bits(23))
        store_floats(scratch, STORED_SCALE * lines + place, floats_of(back))


@inlined
def find_e4m3_scales(
    n_groups: int, kind: int, scratch: Any, codes: Any
) -> None:  # pragma: no cover
    """From the largest magnitudes: E4M3 scales; weights over a zero scale become zero."""
    lines = scratch.size // N_LINES
    for place in range(0, n_groups, LANES):
        high = load_floats(scratch, HIGH * lines + place)
        scale = round_to_e4m3(round_to_kind(high / floats(_E2M1_LARGEST), kind))
        store_bytes(codes, place, code_of_e4m3(scale))
        store_floats(scratch, STORED_SCALE * lines + place, scale)
        is_zero = scale == floats(_ZERO)
        store_floats(scratch, STEP * lines + place, choose(is_zero, floats(_INFINITE), scale))
