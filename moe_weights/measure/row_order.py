"""Sums that depend on where a weight stands: of rows, of columns, and of groups within a row.

A row is cut into chunks, the finest groups that all group sizes are made of. Chunks are added in
sixteen lanes (`vector_lanes`), everything above them in order; so the sums are the same however
rows are cut into blocks, and on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moe_weights.compiled import kernel
from moe_weights.measure.double_double import add_to
from moe_weights.measure.element_access import tally
from moe_weights.measure.float_format import FloatFormat
from moe_weights.measure.vector_lanes import N_LANES, add_magnitudes

# Columns are emptied into two-part sums after so many rows: rounding errors stay below 1e-13.
_ROWS_BETWEEN_EMPTYING = 256
# Longer chunks would round more often within a lane.
_LONGEST_CHUNK = 512
_PLAIN_CHUNK = 64
# Chunks of 32 whose squares are added before they go to a two-part sum.
_CHUNKS_BETWEEN_PARTS = 16


class RowOrder(NamedTuple):
    """What the kernels keep between blocks; see `make_row_order`.

    Attributes:
        chunk: Elements of a chunk; the last chunk of a row may be shorter.
        padded: (lanes,) zeros, in which a chunk is laid that does not fill its lanes.
        columns: (3, C + lanes) sums of squares: since the last emptying, and before in two parts.
        row_squares: (R,) sums of squares.
        chunks: (2, n_chunks) of the current row: sum of |w|, largest |w|.
        square_scale: Squares are of w * square_scale, for float64.
        sum_scale: Sums are of |w| * sum_scale, for float64.
    """

    chunk: int
    padded: NDArray[Any]
    columns: NDArray[np.float64]
    row_squares: NDArray[np.float64]
    chunks: NDArray[np.float64]
    square_scale: float
    sum_scale: float


def make_row_order(
    rows: int,
    cols: int,
    group_sizes: Sequence[int],
    number_format: FloatFormat,
    square_scale: float = 1.0,
    sum_scale: float = 1.0,
) -> RowOrder:
    """Return empty sums for a matrix (R, C) and group sizes that divide C."""
    chunk = _chunk_of(tuple(group_sizes)) if group_sizes else _PLAIN_CHUNK
    lanes = -(-chunk // N_LANES) * N_LANES
    return RowOrder(
        chunk=chunk,
        padded=np.zeros(lanes, dtype=number_format.integer),
        columns=np.zeros((3, cols + lanes), dtype=np.float64),
        row_squares=np.zeros(rows, dtype=np.float64),
        chunks=np.zeros((2, -(-cols // chunk)), dtype=np.float64),
        square_scale=square_scale,
        sum_scale=sum_scale,
    )


def order_of_single_rows(order: RowOrder) -> RowOrder:
    """Return the same for rows that are looked at one by one, each as number 0."""
    return order._replace(
        columns=np.zeros_like(order.columns),
        row_squares=np.zeros(1, dtype=np.float64),
        chunks=np.zeros_like(order.chunks),
    )


def column_squares(order: RowOrder, cols: int) -> NDArray[np.float64]:
    """Return the sums of squares of all columns, (C,)."""
    sums: NDArray[np.float64] = order.columns[1] + (order.columns[2] + order.columns[0])
    return sums[:cols]


@lru_cache(maxsize=64)
def _chunk_of(group_sizes: tuple[int, ...]) -> int:
    """Return the longest chunk that all groups consist of; whole lanes where that is possible."""
    base = math.gcd(*group_sizes)
    lengths = [n for n in range(1, min(base, _LONGEST_CHUNK) + 1) if base % n == 0]
    whole = [n for n in lengths if n % N_LANES == 0]
    return whole[-1] if whole else lengths[-1]


@kernel
def order_row(
    row: NDArray[Any], number: int, order: RowOrder, counts: NDArray[Any]
) -> None:  # pragma: no cover
    """Add one row.

    Args:
        row: (C,) bits.
        number: Of the row within the matrix.
        order: Everything that is summed.
        counts: Where patterns are counted, see `tally`: between vector operations it costs little.
    """
    chunk, padded, running = order.chunk, order.padded, order.columns[0]
    n_whole = len(row) // chunk if chunk % N_LANES == 0 else 0
    squares = squares_low = pending = 0.0
    if chunk == 2 * N_LANES:  # the usual case, unrolled by the compiler
        for k in range(n_whole):
            total, square, largest = add_magnitudes(
                row, k * 2 * N_LANES, 2, running, k * 2 * N_LANES,
                order.square_scale, order.sum_scale,
            )  # fmt: skip
            tally(row, k * 2 * N_LANES, 2 * N_LANES, counts)
            order.chunks[0, k] = total
            order.chunks[1, k] = largest
            # A two-part sum for each chunk would be waited for.
            pending += square
            if k % _CHUNKS_BETWEEN_PARTS == _CHUNKS_BETWEEN_PARTS - 1:
                squares, squares_low = add_to(squares, squares_low, pending)
                pending = 0.0
    else:
        for k in range(n_whole):
            total, square, largest = add_magnitudes(
                row, k * chunk, chunk // N_LANES, running, k * chunk,
                order.square_scale, order.sum_scale,
            )  # fmt: skip
            tally(row, k * chunk, chunk, counts)
            order.chunks[0, k] = total
            order.chunks[1, k] = largest
            squares, squares_low = add_to(squares, squares_low, square)
    for k in range(n_whole, order.chunks.shape[1]):
        start = k * chunk
        length = min(chunk, len(row) - start)
        for i in range(length):
            padded[i] = row[start + i]
        for i in range(length, len(padded)):
            padded[i] = 0
        total, square, largest = add_magnitudes(
            padded, 0, len(padded) // N_LANES, running, start,
            order.square_scale, order.sum_scale,
        )  # fmt: skip
        tally(row, start, length, counts)
        order.chunks[0, k] = total
        order.chunks[1, k] = largest
        squares, squares_low = add_to(squares, squares_low, square)
    squares, squares_low = add_to(squares, squares_low, pending)
    order.row_squares[number] = squares + squares_low
    if (number + 1) % _ROWS_BETWEEN_EMPTYING == 0:
        for column in range(len(row)):
            high, low = add_to(order.columns[1, column], order.columns[2, column], running[column])
            order.columns[1, column] = high
            order.columns[2, column] = low
            running[column] = 0.0
