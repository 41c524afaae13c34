"""Stored bytes seen as an array of their dtype code."""

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
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}


_FP4 = np.dtype(ml_dtypes.float4_e2m1fn)  # two a byte in files, one a byte in arrays


def view_raw(raw: bytes | bytearray | memoryview, dtype_code: str) -> NDArray[Any]:
    """View raw little-endian bytes as a flat array, without a copy (F4 alone is unpacked).

    Args:
        raw: Values, one after the other.
        dtype_code: Code as in safetensors headers; F6 codes have no array type.

    Returns:
        Flat array (n,) of the stored dtype; possibly unaligned.

    Raises:
        UnsupportedDtypeError: no array type exists for the code.
    """
    if dtype_code == "F4":
        packed = np.frombuffer(raw, dtype=np.uint8)
        return np.stack([packed & 15, packed >> 4], axis=-1).reshape(-1).view(_FP4)
    dtype = _DTYPES.get(dtype_code)
    if dtype is None:
        raise UnsupportedDtypeError(
            f"dtype {dtype_code} has no array type; known are {', '.join(_DTYPES)}"
        )
    return np.frombuffer(raw, dtype=dtype)
