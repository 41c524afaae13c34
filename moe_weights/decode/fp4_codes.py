"""Four-bit floats, two a byte: what the codes mean and how they lie.

Source:
    OCP Microscaling Formats (MX) v1.0, section 5.3.3 (E2M1: sign, two exponent bits, one mantissa
    bit, no infinities). Every writer known here puts the earlier column into the low nibble.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from moe_weights.decode.bit_stream import NIBBLES, unpack_nibbles
from moe_weights.decode.scaled_lookup import scale_codes

_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_VALUES = np.array([*_MAGNITUDES, *(-magnitude for magnitude in _MAGNITUDES)], dtype=np.float32)
_PAIRS = _VALUES[NIBBLES]


def scale_fp4(
    codes: NDArray[Any], scales: NDArray[np.float32], group_size: int
) -> NDArray[np.float32]:
    """Return code * scale.

    Args:
        codes: (..., n) one-byte integers, two codes each; or (..., n) `float4_e2m1fn`, one each.
        scales: (..., groups), one for each group of a row.
        group_size: Weights that share a scale; even.

    Returns:
        (..., 2n), or (..., n) where the codes were not packed; contiguous.
    """
    table = _VALUES[:, None] if _is_unpacked(codes) else _PAIRS
    return scale_codes(codes.view(np.uint8), table, scales, (1, group_size))


def unpack_fp4(codes: NDArray[Any]) -> NDArray[np.uint8]:
    """Return one code, 0 to 15, for each value of `scale_fp4`."""
    stored = codes.view(np.uint8)
    return stored if _is_unpacked(codes) else unpack_nibbles(stored)


def _is_unpacked(codes: NDArray[Any]) -> bool:
    return bool(codes.dtype == ml_dtypes.float4_e2m1fn)
