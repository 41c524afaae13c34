"""Integer codes scaled by blocks: value = (code - zero point) * scale (+ bias), in one pass.

Every difference, product and sum is rounded to float32 once, as NumPy would.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_weights.decode.block_scale import on_grid
from moe_weights.errors import CheckpointError

_ZERO = np.zeros(1, dtype=np.float32)
_NO_BIASES = np.empty((0, 0, 0), dtype=np.float32)


def scale_integers(
    codes: NDArray[Any],
    scales: NDArray[np.float32],
    block: tuple[int, int],
    *,
    zeros: NDArray[np.float32] | None = None,
    biases: NDArray[np.float32] | None = None,
    group_of_column: NDArray[np.int64] | None = None,
) -> NDArray[np.float32]:
    """Return the values of scaled integers.

    Args:
        codes: (..., R, C) uint8 or int8.
        scales: One per block, (..., ceil(R / rows), ceil(C / cols)) or anything of as many numbers;
            a single one counts for all.
        block: (rows, cols) that share a scale; blocks at ragged edges are cut.
        zeros: Zero points; as many as scales, or a single one; None for 0.
        biases: Added to the product; like `zeros`.
        group_of_column: (C,) or (..., C) index of the group that each column belongs to, in place
            of consecutive groups; there are no biases then, and a scale for each row and group.

    Returns:
        (..., R, C) contiguous.
    """
    lead, (rows, cols) = codes.shape[:-2], codes.shape[-2:]
    values = np.empty(codes.shape, dtype=np.float32)
    if not values.size:
        return values
    n_entries = math.prod(lead)
    side = min(block[0], rows), min(block[1], cols)
    grid = n_entries, -(-rows // side[0]), -(-cols // side[1])
    if group_of_column is not None:
        side = 1, 1
        grid = n_entries, rows, scales.size // (n_entries * rows)
    elif side[1] == 1 and biases is None:  # inner loops of one element are slow
        group_of_column = np.arange(cols)
    entries = np.require(codes, requirements=["C", "A"]).reshape(n_entries, rows, cols)
    zeros, scales = on_grid(_ZERO if zeros is None else zeros, grid), on_grid(scales, grid)
    # Plans claim tensors without decoding any; they need not wait for a compiler to load.
    from moe_weights.decode.affine_kernels import scale_blocks, scale_indexed

    if group_of_column is None:
        biases = _NO_BIASES if biases is None else on_grid(biases, grid)
        scale_blocks(entries, zeros, scales, biases, side, values.reshape(-1))
        return values
    own = n_entries if group_of_column.size > cols else 1
    groups = np.broadcast_to(group_of_column.reshape(own, cols), (n_entries, cols))
    groups = np.ascontiguousarray(groups, dtype=np.int64)
    scale_indexed(entries, zeros, scales, groups, side[0], values.reshape(entries.shape))
    return values


def known_groups(
    name: str, group_of_column: NDArray[Any] | None, n_groups: int
) -> NDArray[np.int64] | None:
    """Return the group of each column; None where columns belong to groups consecutively.

    Args:
        name: See `checked_groups`.
        group_of_column: As stored; -1 marks an index that its writer never filled.
        n_groups: Scales per row.

    Raises:
        CheckpointError: an index names no group.
    """
    if group_of_column is None or n_groups == 1 or (group_of_column == -1).any():
        return None
    return checked_groups(name, group_of_column, n_groups)


def checked_groups(name: str, group_of_column: NDArray[Any], n_groups: int) -> NDArray[np.int64]:
    """Return the group of each column.

    Args:
        name: Stored name of the index, for the message.
        group_of_column: As stored.
        n_groups: Scales per row.

    Raises:
        CheckpointError: an index names no group.
    """
    lowest, highest = int(group_of_column.min()), int(group_of_column.max())
    if lowest < 0 or highest >= n_groups:
        raise CheckpointError(
            f"{name}: group indices run from {lowest} to {highest}, "
            f"there are {n_groups} groups; write the checkpoint again"
        )
    return group_of_column.astype(np.int64)
