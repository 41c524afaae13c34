"""How packed FP4 weights and their group scales lie: width of the matrix and the packed axis."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_weights.decode.fp4_codes import scale_fp4, unpack_fp4
from moe_weights.decode.row_cuts import PartCut, RowCuts, joined_cuts, scale_cut
from moe_weights.decode.stored_tensor import WEIGHT, StoredTensor

# Dtype codes under which FP4 is stored; F4 counts elements in its shape, the others bytes.
FP4_CODES = frozenset({"U8", "I8", "F4"})
_UNPACKED_CODE = "F4"


def fp4_shape_of(
    dtype_code: str, shape: tuple[int, ...], scale_shape: tuple[int, ...], group_size: int
) -> tuple[tuple[int, ...], int] | None:
    """Return the shape of the values and the axis along which codes and groups run.

    Args:
        dtype_code: Of the stored weights.
        shape: Stored shape (..., R, C) of the weights.
        scale_shape: Stored shape of the group scales.
        group_size: Weights that share a scale.

    Returns:
        (shape, -1); or (shape, -2) for stacked experts whose rows are inputs, as modelopt leaves
        Llama-4; None when the shapes do not fit.
    """
    per_code = 1 if dtype_code == _UNPACKED_CODE else 2
    rows, cols = shape[-2:]
    lead = shape[:-2]
    if scale_shape == (*lead, rows, -(-per_code * cols // group_size)):
        return (*lead, rows, per_code * cols), -1
    if lead and scale_shape == (*lead, -(-per_code * rows // group_size), cols):
        return (*lead, per_code * rows, cols), -2
    return None


def decode_fp4(
    codes: NDArray[Any], scales: NDArray[np.float32], axis: int, group_size: int
) -> NDArray[np.float32]:
    """Return code * scale.

    Args:
        codes: Stored weights (..., R, C).
        scales: One per group; overwritten never.
        axis: -1 or -2, see `fp4_shape_of`.
        group_size: Weights that share a scale.

    Returns:
        Decoded values; for axis -2 a transposed view.
    """
    if axis == -2:
        turned = decode_fp4(
            np.ascontiguousarray(codes.swapaxes(-1, -2)),
            np.ascontiguousarray(scales.swapaxes(-1, -2)),
            -1,
            group_size,
        )
        return turned.swapaxes(-1, -2)
    return scale_fp4(codes, scales, group_size)


def fp4_codes_of(codes: NDArray[Any], axis: int) -> NDArray[np.uint8]:
    """Return one code for each value of `decode_fp4`."""
    if axis == -2:
        return unpack_fp4(np.ascontiguousarray(codes.swapaxes(-1, -2))).swapaxes(-1, -2)
    return unpack_fp4(codes)


def fp4_row_cuts(
    tensor: StoredTensor, axis: int, group_size: int, **others: PartCut | None
) -> RowCuts | None:
    """Return how codes, scales and other parts are cut; see `Encoding.row_cuts`.

    Args:
        tensor: As claimed.
        axis: -1 or -2, see `fp4_shape_of`.
        group_size: Weights that share a scale.
        others: Cuts of the further parts, by role.
    """
    per_code = 1 if tensor.header.dtype_code == _UNPACKED_CODE else 2
    along_rows = axis == -2
    scale = dict(tensor.companions)["scale"]
    block = (group_size, 1) if along_rows else (1, group_size)
    codes = PartCut(rows=per_code, cols=1) if along_rows else PartCut(rows=1, cols=per_code)
    return joined_cuts(
        {WEIGHT: codes, "scale": scale_cut(tensor, scale, block), **others},
        row_grain=codes.rows,
        col_grain=1,
    )
