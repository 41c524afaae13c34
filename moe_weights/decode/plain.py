"""Weights that are stored as the floating-point numbers they are."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from moe_weights.errors import UnsupportedDtypeError

_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


def decode_plain(raw: bytes | bytearray | memoryview, dtype_code: str) -> NDArray[Any]:
    """View raw bytes as the stored floats, without a copy.

    Args:
        raw: Little-endian values, one after the other.
        dtype_code: "F64", "F32", "F16" or "BF16".

    Returns:
        Flat array (n,) of the stored dtype; possibly unaligned.

    Raises:
        UnsupportedDtypeError: another code.
    """
    dtype = _DTYPES.get(dtype_code)
    if dtype is None:
        raise UnsupportedDtypeError(
            f"dtype {dtype_code} is not stored as plain floats; plain are {', '.join(_DTYPES)}"
        )
    return np.frombuffer(raw, dtype=dtype)
