"""Four-bit floats, two a byte: what the codes mean and how bytes become values.

Source:
    OCP Microscaling Formats (MX) v1.0, section 5.3.3 (E2M1: sign, two exponent bits, one mantissa
    bit, no infinities). Every writer known here puts the earlier column into the low nibble.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_VALUES = np.array([*_MAGNITUDES, *(-magnitude for magnitude in _MAGNITUDES)], dtype=np.float32)
# Both values of a byte as one eight-byte entry: one look-up instead of two.
_PAIRS = np.stack(
    [_VALUES[np.arange(256) & 15], _VALUES[np.arange(256) >> 4]], axis=-1, dtype=np.float32
).view(np.complex64)[:, 0]


def unpack_fp4(codes: NDArray[Any]) -> NDArray[np.float32]:
    """Return the values of packed codes.

    Args:
        codes: (..., n) one-byte integers, two codes each; or (..., n) `float4_e2m1fn`, one each.

    Returns:
        (..., 2n), or (..., n) where the codes were not packed; contiguous.
    """
    if codes.dtype == ml_dtypes.float4_e2m1fn:
        return np.ascontiguousarray(codes.astype(np.float32))
    pairs = np.ascontiguousarray(_PAIRS[codes.view(np.uint8)])
    return pairs.view(np.float32)
