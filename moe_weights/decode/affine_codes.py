"""Integer codes, zero points and scales joined to values: (code - zero point) * scale."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_weights.errors import CheckpointError


def apply_per_block(
    operation: np.ufunc,
    values: NDArray[np.float32],
    per_block: NDArray[np.float32],
    block: tuple[int, int],
    group_of_column: NDArray[np.int64] | None = None,
) -> NDArray[np.float32]:
    """Combine weights with the number of their block, in place.

    Args:
        operation: `np.subtract` for zero points, `np.multiply` for scales.
        values: (..., R, C) float32, contiguous; overwritten and returned.
        per_block: One number per block, (..., ceil(R / rows), ceil(C / cols)), with fewer axes
            where those have length 1; or a single number for everything.
        block: (rows, cols) that share a number; blocks at ragged edges are cut.
        group_of_column: (C,) or (..., C) index of the group that each column belongs to, in place
            of consecutive groups.
    """
    rows, cols = values.shape[-2:]
    lead = values.shape[:-2]
    n_rows, n_cols = -(-rows // block[0]), -(-cols // block[1])
    # Damaged scales may be infinite or NaN; what comes out is counted by who measures.
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        if per_block.size == 1:
            operation(values, per_block.reshape(()), out=values)
            return values
        grid = per_block.reshape(*lead, n_rows, n_cols)
        if n_rows not in {1, rows}:
            grid = np.repeat(grid, block[0], axis=-2)[..., :rows, :]
        if n_cols == 1:
            operation(values, grid, out=values)
        elif group_of_column is not None:
            own = lead if group_of_column.size > cols else ()
            index = np.broadcast_to(group_of_column.reshape(*own, cols), (*lead, cols))
            index = index[..., None, :]
            operation(values, np.take_along_axis(grid, index, axis=-1), out=values)
        elif cols % block[1] == 0:
            grouped = values.reshape(*lead, rows, n_cols, block[1])
            operation(grouped, grid[..., None], out=grouped)
        else:
            operation(values, np.repeat(grid, block[1], axis=-1)[..., :cols], out=values)
    return values


def checked_groups(
    name: str, group_of_column: NDArray[Any] | None, n_groups: int
) -> NDArray[np.int64] | None:
    """Return the group of each column; None where columns belong to groups consecutively.

    Args:
        name: Stored name of the index, for the message.
        group_of_column: As stored; -1 marks an index that its writer never filled.
        n_groups: Scales per row.

    Raises:
        CheckpointError: an index names no group.
    """
    if group_of_column is None or n_groups == 1 or (group_of_column == -1).any():
        return None
    lowest, highest = int(group_of_column.min()), int(group_of_column.max())
    if lowest < 0 or highest >= n_groups:
        raise CheckpointError(
            f"{name}: group indices run from {lowest} to {highest}, "
            f"there are {n_groups} groups; write the checkpoint again"
        )
    return group_of_column.astype(np.int64)
