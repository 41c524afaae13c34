"""Scales that are shared by blocks of a matrix: which block shape, and what the scales mean.

1. The config's block counts where the shapes fit it. Where they do not, a float scale is damaged;
   exponent scales (MX formats) have finer blocks of their own beside FP8 blocks in one checkpoint.
2. Without a config only the blocks that writers use are tried: the whole matrix, rows, squares,
   and groups of columns. Two different ones never fit the same shapes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_weights.decode.scale_codes import decode_e8m0

# Sides of blocks that writers use, elements.
_SIDES = (128, 64, 32, 16)
_EXPONENT_SIDES = (32,)  # groups of MX formats


def block_shape_of(
    shape: tuple[int, ...],
    scale_shape: tuple[int, ...],
    configured: tuple[int, int] | None,
    *,
    is_exponent: bool = False,
) -> tuple[int, int] | None:
    """Return the (rows, cols) that one scale covers, or None when the shapes do not fit.

    Args:
        shape: Shape of the weights; the last two axes are blocked, others have one scale each.
        scale_shape: Shape of the scales: () or (1,) per tensor, (rows,) or (rows, 1) per row,
            (ceil(rows / b), ceil(cols / b)) per block; with more axes in front for fused weights.
            Stacked weights whose rows are inputs may have (..., 1, cols) or (..., rows / b, cols).
        configured: `weight_block_size` of config.json.
        is_exponent: The scales are E8M0 exponents, as the MX formats have them.
    """
    if configured is not None and fits_block(shape, scale_shape, configured):
        return configured
    if configured is not None and not is_exponent:
        return None
    block = _infer_block(shape, scale_shape, is_exponent=is_exponent)
    if block is None or configured is None:
        return block
    return block if block[0] < min(configured[0], shape[-2]) else None


def parse_block(block: object) -> tuple[int, int] | None:
    """Return (rows, cols) of a block in a config; None where it is none.

    Args:
        block: [rows, cols] or, as older versions of compressed-tensors write it, "rowsxcols".
    """
    sides = block.split("x") if isinstance(block, str) else block
    if not isinstance(sides, Sequence) or len(sides) != 2:
        return None
    numbers = [int(side) for side in sides if str(side).isdecimal() and int(side) > 0]
    return (numbers[0], numbers[1]) if len(numbers) == 2 else None


def fits_block(
    shape: tuple[int, ...], scale_shape: tuple[int, ...], block: tuple[int, int]
) -> bool:
    """Tell whether a scale has one entry for each block.

    Args:
        shape: Shape of the weights (..., R, C).
        scale_shape: Shape of the scales.
        block: (rows, cols) that one scale covers; 0 stands for the whole axis.
    """
    lead = shape[:-2]
    grid = expected_grid(shape, block)
    if math.prod(scale_shape) == 1:
        return grid == (1, 1) and (math.prod(lead) == 1 or block == (0, 0))
    if grid == (1, 1) and scale_shape == lead:
        return True
    if block[0] == 1 and grid[1] == 1 and scale_shape == (*lead, grid[0]):
        return True
    # modelopt leaves the axes within a block in place, with length 1.
    return scale_shape in {(*lead, *grid), (*lead, grid[0], 1, grid[1], 1)}


def expected_grid(shape: tuple[int, ...], block: tuple[int, int]) -> tuple[int, int]:
    """Return how many blocks lie along rows and columns; see `fits_block`."""
    rows, cols = shape[-2:]
    return -(-rows // max(block[0] or rows, 1)), -(-cols // max(block[1] or cols, 1))


def real_scales(scales: NDArray[Any]) -> NDArray[np.float32]:
    """Return scales as float32; one-byte integers are E8M0 exponents, 2**(code - 127)."""
    if scales.dtype.itemsize == 1:
        # A look-up is many times as fast as a cast of the array; the values are the same.
        codes = np.arange(256, dtype=np.uint8)
        table = decode_e8m0(codes) if scales.dtype == np.uint8 else codes.view(scales.dtype)
        looked_up: NDArray[np.float32] = table.astype(np.float32)[scales.view(np.uint8)]
        return looked_up
    # Of float64 scales; infinities and NaNs are counted by who measures.
    with np.errstate(over="ignore", invalid="ignore"):
        widened: NDArray[np.float32] = scales.astype(np.float32)
    return widened


def on_grid(numbers: NDArray[np.float32], grid: tuple[int, int, int]) -> NDArray[np.float32]:
    """Return one number for each block (entries, block rows, block cols), contiguous.

    Args:
        numbers: As many in any shape, or a single one for all.
        grid: How many blocks.
    """
    if numbers.size == 1:
        return np.full(grid, numbers.reshape(-1)[0], dtype=np.float32)
    return np.require(numbers, dtype=np.float32, requirements=["C", "A"]).reshape(grid)


@lru_cache(maxsize=4096)  # a checkpoint has a handful of shapes
def _infer_block(
    shape: tuple[int, ...], scale_shape: tuple[int, ...], *, is_exponent: bool
) -> tuple[int, int] | None:
    rows, cols = shape[-2:]
    lead = shape[:-2]
    if math.prod(scale_shape) == 1:
        return (rows, cols)
    if lead and scale_shape in {lead, (*lead, 1), (*lead, 1, 1)}:
        return (rows, cols)
    if lead and scale_shape in {(*lead, rows), (*lead, cols)}:
        # Writers leave the axis open here; equal lengths would make it a guess.
        if rows == cols:
            return None
        return (1, cols) if scale_shape[-1] == rows else (rows, 1)
    if scale_shape in {(*lead, rows), (*lead, rows, 1)}:
        return (1, cols)
    if lead and scale_shape == (*lead, 1, cols):
        return (rows, 1)
    groups = _EXPONENT_SIDES if is_exponent else _SIDES
    candidates = [(side, side) for side in _SIDES] + [(1, side) for side in groups]
    if lead:
        candidates += [(side, 1) for side in groups]
    found = next((block for block in candidates if fits_block(shape, scale_shape, block)), None)
    if found is None or is_exponent or found[0] > 1 or not cols:  # MX formats: no other groups
        return found
    # A ragged last group stands against whole groups of another size: which, only a config says.
    # Groups of every writer are multiples of 8.
    whole, rest = divmod(cols, -(-cols // found[1]))
    return None if cols % found[1] and not rest and whole % 8 == 0 else found
