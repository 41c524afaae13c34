"""Real values of scales that are stored as one-byte codes."""

from __future__ import annotations

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

# Its scales are E4M3 numbers; in all others, bytes are E8M0 exponents.
_E4M3_BYTES = "mlx_nvfp4"


def decode_e8m0(codes: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return 2**(code - 127); code 255 is NaN.

    Source:
        OCP Microscaling Formats (MX) v1.0, section 5.4.1.
    """
    values: NDArray[np.float64] = codes.view(ml_dtypes.float8_e8m0fnu).astype(np.float64)
    return values


def decode_e4m3(codes: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the values of E4M3 codes (finite, 448 largest; 0x7f and 0xff are NaN).

    Source:
        OCP 8-bit Floating Point Specification v1.0, section 5.
    """
    values: NDArray[np.float64] = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    return values


def nan_codes(encoding: str, role: str) -> tuple[int, ...]:
    """Return the codes that are NaN in a part that is stored under U8.

    Args:
        encoding: Name of the member that decodes the part's tensor.
        role: Role of the part; what is no scale has no such codes.
    """
    if role != "scale":
        return ()
    return (0x7F, 0xFF) if encoding == _E4M3_BYTES else (0xFF,)
