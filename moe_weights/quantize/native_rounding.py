"""How are sixteen numbers read, and rounded to the formats that MLX quantises in and to?

All of it is exact integer work on float32 patterns, so it needs no table and no branch per number.
Called inside kernels only; the formats' numbers (`KIND_*`) are run-time arguments, so that one
compiled kernel serves all dtypes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from moe_weights.compiled import inlined
from moe_weights.quantize.native_vectors import (
    bits,
    bits_of,
    choose,
    floats,
    floats_of,
    load_halves,
    load_words,
    smaller,
    widen_halves,
)

KIND_BFLOAT16, KIND_FLOAT16, KIND_FLOAT32 = 0, 1, 2

_F = np.float32
_ZERO, _QUARTER, _HALF, _THREE_QUARTERS, _ONE = _F(0.0), _F(0.25), _F(0.5), _F(0.75), _F(1.0)
_E2M1_LARGEST, _E4M3_LARGEST = _F(6.0), _F(448.0)
_E4M3_SMALLEST_NORMAL = _F(2.0**-6)
# Adding these rounds a smaller number to a multiple of 2**-24 and of 2**-9: that is their own step.
_HALF_DENORMALS, _E4M3_DENORMALS = _F(0.5), _F(2.0**14)
_FLOAT16_SMALLEST_NORMAL = _F(2.0**-14)
_HALF_TO_FLOAT = _F(2.0**112)  # between the exponent biases 127 and 15


@inlined
def weights_of(pattern: Any, kind: int) -> Any:  # pragma: no cover
    """Return stored weights as float32, exactly.

    Args:
        pattern: Their patterns, as 32-bit integers.
        kind: `KIND_*`.
    """
    if kind == KIND_BFLOAT16:
        found = floats_of(pattern << bits(16))
    elif kind == KIND_FLOAT16:
        size = pattern & bits(0x7FFF)
        # Inf and NaN keep an exponent of all ones.
        wide = bits_of(floats_of(size << bits(13)) * floats(_HALF_TO_FLOAT))
        wide = choose(size >= bits(0x7C00), wide | bits(0x7F800000), wide)
        found = floats_of(wide | ((pattern & bits(0x8000)) << bits(16)))
    else:
        found = floats_of(pattern)
    return found


@inlined
def load_weights(data: Any, index: int, kind: int) -> Any:  # pragma: no cover
    """Return sixteen stored weights as float32, exactly.

    Args:
        data: (n,) uint8, the matrix as stored.
        index: Number of the first weight.
        kind: `KIND_*`.
    """
    if kind == KIND_FLOAT32:
        pattern = load_words(data, index)
    else:
        pattern = widen_halves(load_halves(data, index))
    return weights_of(pattern, kind)


@inlined
def without_sign(lanes: Any) -> Any:  # pragma: no cover
    """Return the magnitudes of floats."""
    return floats_of(bits_of(lanes) & bits(0x7FFFFFFF))


@inlined
def with_sign_of(size: Any, signed: Any) -> Any:  # pragma: no cover
    """Return magnitudes with the signs of other floats."""
    return floats_of(bits_of(size) | (bits_of(signed) & bits(0x80000000)))


@inlined
def round_to_bfloat16(lanes: Any) -> Any:  # pragma: no cover
    """Round floats to bfloat16, ties to even; the NaN that arithmetic makes stays NaN."""
    pattern = bits_of(lanes)
    odd = (pattern & bits(0x10000)) != bits(0)
    pattern = choose(odd, pattern + bits(0x8000), pattern + bits(0x7FFF))
    return floats_of(pattern & bits(0xFFFF0000))


@inlined
def round_to_float16(lanes: Any) -> Any:  # pragma: no cover
    """Round floats to float16, ties to even; beyond its range they become infinite."""
    size = without_sign(lanes)
    pattern = bits_of(size)
    odd = (pattern >> bits(13)) & bits(1)
    normal = (pattern + odd + bits(0xFFF)) & bits(0xFFFFE000)
    normal = choose(normal >= bits(0x47800000), bits(0x7F800000), normal)
    normal = choose(pattern > bits(0x7F800000), pattern, normal)
    denormal = (size + floats(_HALF_DENORMALS)) - floats(_HALF_DENORMALS)
    small = size < floats(_FLOAT16_SMALLEST_NORMAL)
    return with_sign_of(choose(small, denormal, floats_of(normal)), lanes)


@inlined
def round_to_kind(lanes: Any, kind: int) -> Any:  # pragma: no cover
    """Round floats to a dtype of weights, ties to even."""
    if kind == KIND_BFLOAT16:
        found = round_to_bfloat16(lanes)
    elif kind == KIND_FLOAT16:
        found = round_to_float16(lanes)
    else:
        found = lanes
    return found


@inlined
def round_to_e2m1(lanes: Any) -> Any:  # pragma: no cover
    """Round floats to 0, 0.5, 1, 1.5, 2, 3, 4, 6 with sign; ties to the smaller, zero is +0."""
    size = without_sign(lanes)
    # From 1 on one bit of fraction remains: adding less than half of it rounds ties down.
    coarse = floats_of((bits_of(size) + bits(0x1FFFFF)) & bits(0xFFC00000))
    fine = choose(size > floats(_THREE_QUARTERS), floats(_ONE), floats(_HALF))
    grid = smaller(choose(size > floats(_ONE), coarse, fine), floats(_E2M1_LARGEST))
    return choose(size > floats(_QUARTER), with_sign_of(grid, lanes), floats(_ZERO))


@inlined
def round_to_e2m1_by_distance(lanes: Any) -> Any:  # pragma: no cover
    """Round as MLX does far beyond 6: to the first of the eight with the least distance in float32.

    From 2**25 on several distances round to the same number, in the end even that of 0.
    """
    size = without_sign(lanes)
    grid = floats(_ZERO)
    least = size
    for step in range(1, 8):
        code = _F(step)
        value = code * _HALF if step < 5 else (code - _F(2.0) if step < 7 else _E2M1_LARGEST)
        distance = without_sign(size - floats(value))
        grid = choose(distance < least, floats(value), grid)
        least = smaller(distance, least)
    return choose(grid > floats(_ZERO), with_sign_of(grid, lanes), floats(_ZERO))


@inlined
def code_of_e2m1(grid: Any) -> Any:  # pragma: no cover
    """Return the 4-bit codes of numbers that `round_to_e2m1` gives."""
    size = without_sign(grid)
    pattern = bits_of(size)
    # 1, 1.5, 2, 3, 4, 6 have consecutive patterns in their upper ten bits.
    code = (pattern >> bits(22)) - bits((0x3F800000 >> 22) - 2)
    code = choose(size < floats(_ONE), bits(1), code)
    code = choose(size < floats(_HALF), bits(0), code)
    return code | ((bits_of(grid) & bits(0x80000000)) >> bits(28))


@inlined
def round_to_e4m3(lanes: Any) -> Any:  # pragma: no cover
    """Round floats to E4M3, ties to even, beyond 448 to 448; the sign stays, also of zero."""
    size = without_sign(lanes)
    pattern = bits_of(size)
    odd = (pattern >> bits(20)) & bits(1)
    normal = floats_of((pattern + odd + bits(0x7FFFF)) & bits(0xFFF00000))
    denormal = (size + floats(_E4M3_DENORMALS)) - floats(_E4M3_DENORMALS)
    grid = choose(size < floats(_E4M3_SMALLEST_NORMAL), denormal, normal)
    return with_sign_of(smaller(grid, floats(_E4M3_LARGEST)), lanes)


@inlined
def code_of_e4m3(grid: Any) -> Any:  # pragma: no cover
    """Return the 8-bit codes of numbers that `round_to_e4m3` gives."""
    size = without_sign(grid)
    normal = (bits_of(size) >> bits(20)) - bits(120 << 3)
    denormal = bits_of(size + floats(_E4M3_DENORMALS)) - bits(141 << 23)
    code = choose(size < floats(_E4M3_SMALLEST_NORMAL), denormal, normal)
    return code | ((bits_of(grid) & bits(0x80000000)) >> bits(24))
