"""How the parts of an encoded tensor are cut, so that some rows are decoded without the rest.

A tensor (..., R, C) has entries, one for each index of its leading axes, stored one after the
other. A member states once per tensor how many decoded rows a stored row of each part covers. From
that follow the bytes of any rows, and a smaller tensor (r, c) that the same member decodes: bit for
bit the rows that decoding everything would give.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from numpy.typing import NDArray

from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.decode.stored_tensor import StoredTensor

# Option of every cut tensor: its first row, counted over all entries from the tensor's first.
_FIRST_ROW = "first_row"


@dataclass(frozen=True, slots=True, kw_only=True)
class PartCut:
    """How one stored part is cut.

    Attributes:
        rows: Decoded rows that a stored row covers; each entry begins with a stored row of its own.
            0: the part is passed whole, as it is stored.
        cols: Decoded columns that an element of a stored row covers; 0: all of them.
    """

    rows: int
    cols: int = 0


WHOLE: Final = PartCut(rows=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowCuts:
    """How the parts of one tensor are cut; cut parts have two axes.

    Attributes:
        parts: Cut of each part that the decoder needs, by role.
        row_grain: Rows that share stored elements; a cut begins at a multiple.
        col_grain: The same for columns; 0: rows are only decoded as a whole.
    """

    parts: Mapping[str, PartCut]
    row_grain: int = 1
    col_grain: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PartRange:
    """Where the rows of a cut lie in one part.

    Attributes:
        start: First byte.
        stop: One past the last byte.
        shape: Shape of the elements between them.
    """

    start: int
    stop: int
    shape: tuple[int, ...]


def n_entries(tensor: StoredTensor) -> int:
    """Return how many matrices (R, C) a tensor holds."""
    return math.prod(tensor.shape[:-2])


def row_ranges(cuts: RowCuts, first: int, last: int, height: int) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of consecutive rows that can be decoded apart.

    Args:
        cuts: Of the tensor.
        first: First row, counted from its entry's first.
        last: One past the last row; at most the rows of an entry.
        height: Most rows at a time.
    """
    sides = [cut.rows for cut in cuts.parts.values()] + [cuts.row_grain]
    sides = [side for side in sides if side > 1]
    start = first
    while start < last:
        stop = min(start + max(height, 1), last)
        for side in sides:
            # A stored row that began above must not be followed by another one: the decoder could
            # not tell where it ends.
            into = start % side
            if into:
                stop = min(stop, start - into + side)
            elif side < stop - start and stop < last:
                stop = start + (stop - start) // side * side
        yield start, stop
        start = stop


def part_range(
    tensor: StoredTensor, header: TensorHeader, cut: PartCut, entry: int, rows: tuple[int, int]
) -> PartRange:
    """Return which bytes of a part some rows of an entry need.

    Args:
        tensor: The tensor.
        header: Its part.
        cut: How the part is cut.
        entry: Which matrix of the tensor.
        rows: (first, one past the last), one of `row_ranges` or beginning at a multiple of
            `row_grain` above it.
    """
    if not cut.rows:
        return PartRange(start=0, stop=header.nbytes, shape=header.shape)
    per_entry = -(-tensor.shape[-2] // cut.rows)
    n_stored = n_entries(tensor) * per_entry
    nbytes = header.nbytes // n_stored
    first, last = rows[0] // cut.rows, -(-rows[1] // cut.rows)
    return PartRange(
        start=(entry * per_entry + first) * nbytes,
        stop=(entry * per_entry + last) * nbytes,
        shape=(last - first, header.n_elements // n_stored),
    )


def cut_columns(
    cuts: RowCuts, parts: Mapping[str, NDArray[Any]], cols: tuple[int, int]
) -> dict[str, NDArray[Any]]:
    """Return the parts of some rows without what belongs to other columns; views.

    Args:
        cuts: Of the tensor; `col_grain` is not 0.
        parts: Cut to rows.
        cols: (first, one past the last); the first is a multiple of `col_grain`, and so is the last
            unless it is that of the tensor.
    """
    return {
        role: part[:, cols[0] // side : -(-cols[1] // side)]
        if (side := cuts.parts[role].cols)
        else part
        for role, part in parts.items()
    }


def cut_tensor(tensor: StoredTensor, shape: tuple[int, int], first_row: int) -> StoredTensor:
    """Return the tensor that a cut is.

    Args:
        tensor: The whole.
        shape: (r, c) of the cut.
        first_row: Counted over all entries from the tensor's first.
    """
    return StoredTensor(
        name=tensor.name,
        encoding=tensor.encoding,
        header=tensor.header,
        shape=shape,
        companions=tensor.companions,
        options=(*tensor.options, (_FIRST_ROW, first_row)),
    )


def first_row_of(tensor: StoredTensor) -> int:
    """Return the first row of a cut, 0 for a whole tensor; see `cut_tensor`."""
    first = dict(tensor.options).get(_FIRST_ROW, 0)
    assert isinstance(first, int)
    return first


def scale_cut(tensor: StoredTensor, header: TensorHeader, block: tuple[int, int]) -> PartCut | None:
    """Return the cut of a part with one number for each block; None where it has other numbers.

    Args:
        tensor: The tensor.
        header: Its scale, bias or zero point.
        block: (rows, cols) that share a number.
    """
    if header.n_elements == 1:
        return WHOLE
    rows, cols = tensor.shape[-2:]
    side = min(block[0], rows), min(block[1], cols)
    grid = -(-rows // side[0]), -(-cols // side[1])
    if header.n_elements != n_entries(tensor) * grid[0] * grid[1]:
        return None
    return PartCut(rows=side[0], cols=side[1] if grid[1] > 1 else 0)


def joined_cuts(
    parts: Mapping[str, PartCut | None], *, row_grain: int = 1, col_grain: int = 0
) -> RowCuts | None:
    """Return the cuts of a tensor; None when one of its parts cannot be cut."""
    known = {role: cut for role, cut in parts.items() if cut is not None}
    if len(known) < len(parts):
        return None
    # Columns must not end within what a stored element covers.
    sides = (side for cut in known.values() if (side := cut.cols))
    return RowCuts(
        parts=known,
        row_grain=row_grain,
        col_grain=math.lcm(col_grain, *sides) if col_grain else 0,
    )
