"""Which numbers do kernels read and compare, and which mode do they follow?"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_weights.decode.scale_codes import decode_e4m3, decode_e8m0
from moe_weights.quantize.native_rounding import KIND_BFLOAT16, KIND_FLOAT16, KIND_FLOAT32
from moe_weights.quantize.native_scales import MODE_AFFINE, MODE_MXFP4, MODE_MXFP8, MODE_NVFP4
from moe_weights.quantize.round_trip import SchemeSpec

_KINDS = {"bfloat16": KIND_BFLOAT16, "float16": KIND_FLOAT16, "float32": KIND_FLOAT32}
MODES = {
    "affine": MODE_AFFINE,
    "mxfp4": MODE_MXFP4,
    "mxfp8": MODE_MXFP8,
    "nvfp4": MODE_NVFP4,
}


@lru_cache(maxsize=len(_KINDS))
def kind_of(dtype: np.dtype[Any]) -> int:
    """Return what kernels call a dtype, `KIND_*`.

    Raises:
        ValueError: it is not float16, bfloat16 or float32.
    """
    if dtype.name not in _KINDS:
        raise ValueError(
            f"[quantize] Only real floating types can be quantized but w has type {dtype.name}."
        )
    return _KINDS[dtype.name]


def stored_bytes(block: NDArray[Any]) -> NDArray[np.uint8]:
    """Return weights as the flat read-only bytes that kernels are compiled for.

    Args:
        block: (r, C) float16, bfloat16 or float32.

    Raises:
        ValueError: not two-dimensional, or of another dtype.
    """
    if block.ndim != 2:
        raise ValueError(
            f"[quantize] The matrix to be quantized must have 2 dimensions but it has {block.ndim}."
        )
    kind_of(block.dtype)
    data = np.ascontiguousarray(block).reshape(-1).view(np.uint8)
    data.flags.writeable = False
    return data


def real_scales(mode: str, codes: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the scales that MLX multiplies with, float64, from the codes that it stores.

    Args:
        mode: "mxfp4", "mxfp8" or "nvfp4".
        codes: E4M3 for nvfp4, else E8M0. Code 255, NaN by the standard, is infinite in MLX.
    """
    if mode == "nvfp4":
        return decode_e4m3(codes)
    return np.where(codes == 255, np.inf, decode_e8m0(codes))


def refuse_width(scheme: SchemeSpec, rows: int, cols: int) -> None:
    """Refuse groups that do not divide the columns, as MLX does for the matrix as a whole.

    Asked before blocks of rows go to MLX: its own text would name the block, and a group of
    zero columns ends the whole process in its division.

    Raises:
        ValueError: groups do not divide the columns, or have no size.
    """
    if scheme.mode not in MODES:
        return
    if scheme.group_size == 0:
        raise ValueError(_wrong_group(scheme))
    if cols % scheme.group_size:
        raise ValueError(
            "[quantize] The last dimension of the matrix needs to be divisible by the "
            f"quantization group size {scheme.group_size}. However the provided  matrix has shape "
            f"({rows},{cols})"
        )


def refuse_shape(scheme: SchemeSpec, rows: int, cols: int) -> None:
    """Refuse a matrix as a whole, as MLX does on a CPU.

    Raises:
        ValueError: see `refuse_width`; or nvfp4 on an odd number of groups, whose 16 codes of 4
            bits do not fill the four words of 32 bits in which MLX packs them.
    """
    refuse_width(scheme, rows, cols)
    is_nvfp4 = (scheme.mode, scheme.bits, scheme.group_size) == ("nvfp4", 4, 16)
    if is_nvfp4 and rows * cols % 32:
        size = rows * cols
        raise ValueError(
            f"[reshape] Cannot reshape array of size {size} into shape ({size // 32},4,8)."
        )


def refuse_scheme(scheme: SchemeSpec) -> None:
    """Refuse what MLX refuses, in its words.

    Raises:
        ValueError: MLX has no such mode, or not with these bits and groups.
    """
    if scheme.mode not in MODES:
        raise ValueError(f"[quantize] Invalid quantization mode '{scheme.mode}'.")
    if scheme.mode == "affine":
        if scheme.group_size not in (32, 64, 128):
            raise ValueError(_wrong_group(scheme))
        if scheme.bits not in (1, 2, 3, 4, 5, 6, 8):
            raise ValueError(
                f"[quantize] The requested number of bits {scheme.bits} is not supported. "
                "The supported bits are 1, 2, 3, 4, 5, 6 and 8."
            )
        return
    if scheme.group_size != (16 if scheme.mode == "nvfp4" else 32):
        raise ValueError(_wrong_group(scheme))
    bits = 8 if scheme.mode == "mxfp8" else 4
    if scheme.bits != bits:
        raise ValueError(
            f"[quantize] {scheme.mode} quantization requires bits to be {bits} "
            f"but got {scheme.bits}."
        )


def _wrong_group(scheme: SchemeSpec) -> str:
    if scheme.mode == "affine":
        return (
            f"[quantize] The requested group size {scheme.group_size} is not supported. "
            "The supported group sizes are 32, 64, and 128."
        )
    wanted = 16 if scheme.mode == "nvfp4" else 32
    return (
        f"[quantize] {scheme.mode} quantization requires group size {wanted} "
        f"but got {scheme.group_size}."
    )
