"""The rows of one matrix as they come from the disk, block by block, in bounded memory.

1. Rows that lie one after the other are read straight into a small buffer.
2. Matrices that are woven into each other (interleaved rows, experts on the last axis) share one
   read where their unit is small, and are picked out of it.
3. What is neither is gathered line by line: a line is a run along the stored axis of the smaller
   stride.
4. Encoded tensors are decoded a row block at a time where their parts can be cut, else as a whole.

However the rows arrive, the numbers made of them are the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.checkpoint.tensor_reader import TensorBytes, open_tensor
from moe_weights.decode.raw_array import view_raw
from moe_weights.extract.layout import MatrixView
from moe_weights.extract.work_unit import WorkUnit
from moe_weights.measure.scratch import Scratch

# A block stays in a core's own cache while every number of it is computed.
BLOCK_NBYTES = 2**20
# A unit of woven matrices up to this size is read once for all of them.
SHARED_NBYTES = 32 * 2**20
# Most of a matrix that is gathered at a time when its rows do not lie one after the other.
BAND_NBYTES = 32 * 2**20
# Skipping fewer bytes than this costs more in calls than reading them.
_SKIP_NBYTES = 8192


def is_row_by_row(view: MatrixView) -> bool:
    """The stored elements of the matrix follow each other without gaps, row by row."""
    return view.col_stride == 1 and (view.row_stride == view.cols or view.rows == 1)


class PlainUnit:
    """The matrices of a unit of plain floats."""

    def __init__(
        self, unit: WorkUnit, root: Path, scratch_folder: Path | None, scratch: Scratch
    ) -> None:
        """Open nothing yet.

        Args:
            unit: Of encoding "plain".
            root: Model directory.
            scratch_folder: See `open_tensor`.
            scratch: Where blocks of the usual size are read to; the unit before must be done.
        """
        self._unit = unit
        self._header = unit.source.header
        self._root = root
        self._scratch_folder = scratch_folder
        self._width = self._header.nbytes // self._header.n_elements
        self._is_shared = is_shared(unit)
        self._shared: NDArray[Any] | None = None
        self._buffer = scratch.empty("block", (BLOCK_NBYTES,), np.uint8)

    def blocks(self, view: MatrixView) -> Iterator[NDArray[Any]]:
        """Yield a matrix in row blocks.

        Args:
            view: A matrix of the unit, counted from the unit's start.

        Yields:
            (r, C) contiguous and aligned, top to bottom; valid until the next one is asked for.

        Raises:
            CheckpointError: the shard cannot be read.
            ValueError: the view does not lie within the tensor.
        """
        if self._is_shared:
            yield from contiguous_blocks(self._read_shared(), view)
            return
        with open_tensor(self._root, self._header, self._scratch_folder) as stored:
            if is_row_by_row(view):
                yield from self._stream(stored, view)
            elif view.col_stride <= view.row_stride:
                yield from self._gather_rows(stored, view)
            else:
                yield from self._gather_columns(stored, view)

    def code_blocks(self, _view: MatrixView) -> Iterator[NDArray[Any]]:
        """Yield nothing: plain floats are their own codes."""
        return iter(())

    def _stream(self, stored: TensorBytes, view: MatrixView) -> Iterator[NDArray[Any]]:
        for first, count in _row_ranges(view.rows, view.cols * self._width):
            start = self._unit.start + view.offset + first * view.cols
            yield self._read(stored, start, count * view.cols).reshape(count, view.cols)

    def _gather_rows(self, stored: TensorBytes, view: MatrixView) -> Iterator[NDArray[Any]]:
        for first, count in _row_ranges(view.rows, view.row_stride * self._width):
            lines = self._read_lines(
                stored,
                start=self._unit.start + view.offset + first * view.row_stride,
                lines=(count, view.row_stride),
                elements=(view.cols, view.col_stride),
            )
            yield np.require(lines, requirements=["C", "A"])

    def _gather_columns(self, stored: TensorBytes, view: MatrixView) -> Iterator[NDArray[Any]]:
        band_rows = max(1, min(view.rows, BAND_NBYTES // (view.cols * self._width)))
        band = np.empty((band_rows, view.cols), dtype=_dtype(self._header))
        for first in range(0, view.rows, band_rows):
            count = min(band_rows, view.rows - first)
            line_nbytes = max(1, (count - 1) * view.row_stride + 1) * self._width
            step = max(1, BLOCK_NBYTES // max(line_nbytes, view.col_stride * self._width))
            for col in range(0, view.cols, step):
                lines = self._read_lines(
                    stored,
                    start=self._unit.start
                    + view.offset
                    + first * view.row_stride
                    + col * view.col_stride,
                    lines=(min(step, view.cols - col), view.col_stride),
                    elements=(count, view.row_stride),
                )
                band[:count, col : col + len(lines)] = lines.T
            for top, height in _row_ranges(count, view.cols * self._width):
                yield band[top : top + height]

    def _read_lines(
        self,
        stored: TensorBytes,
        *,
        start: int,
        lines: tuple[int, int],
        elements: tuple[int, int],
    ) -> NDArray[Any]:
        """Read lines of elements; both as (count, stride in elements). Returns (lines, elements).

        The gaps between lines are read as well where that is cheaper than skipping them.
        """
        (n_lines, line_stride), (n_elements, stride) = lines, elements
        span = (n_elements - 1) * stride + 1
        if n_lines > 1 and (line_stride - span) * self._width > _SKIP_NBYTES:
            gathered = np.empty((n_lines, n_elements), dtype=_dtype(self._header))
            for line in range(n_lines):
                read = self._read(stored, start + line * line_stride, span)
                gathered[line] = read[::stride]
            return gathered
        flat = self._read(stored, start, (n_lines - 1) * line_stride + span)
        return _strided(flat, (n_lines, n_elements), (line_stride, stride))

    def _read(self, stored: TensorBytes, start: int, count: int) -> NDArray[Any]:
        """Read elements into the buffer, which the next read overwrites."""
        nbytes = count * self._width
        if self._buffer.size < nbytes:
            self._buffer = np.empty(nbytes, dtype=np.uint8)
        target = self._buffer[:nbytes]
        stored.read_into(start * self._width, memoryview(target))
        return view_raw(memoryview(target), self._header.dtype_code)

    def _read_shared(self) -> NDArray[Any]:
        if self._shared is None:
            with open_tensor(self._root, self._header, self._scratch_folder) as stored:
                self._shared = self._read(
                    stored, self._unit.start, self._unit.stop - self._unit.start
                )
        return self._shared


def contiguous_blocks(flat: NDArray[Any], view: MatrixView) -> Iterator[NDArray[Any]]:
    """Yield a matrix of elements in memory in row blocks, copied where it is not stored so.

    Args:
        flat: (n,) elements from the first one of the view's unit on.
        view: Place of the matrix among them.

    Raises:
        ValueError: the view reaches beyond the elements.
    """
    if view.offset < 0 or view.stop > flat.size:
        raise ValueError(f"{view} does not lie within {flat.size} elements")
    matrix = _strided(
        flat[view.offset :], (view.rows, view.cols), (view.row_stride, view.col_stride)
    )
    for first, count in _row_ranges(view.rows, view.cols * flat.dtype.itemsize):
        yield np.require(matrix[first : first + count], requirements=["C", "A"])


def _strided(flat: NDArray[Any], shape: tuple[int, int], strides: tuple[int, int]) -> NDArray[Any]:
    width = flat.dtype.itemsize
    return as_strided(flat, shape=shape, strides=(strides[0] * width, strides[1] * width))


def _row_ranges(rows: int, row_nbytes: int) -> Iterator[tuple[int, int]]:
    """Yield (first row, count) of blocks of about `BLOCK_NBYTES`."""
    height = max(1, BLOCK_NBYTES // row_nbytes)
    for first in range(0, rows, height):
        yield first, min(height, rows - first)


def is_shared(unit: WorkUnit) -> bool:
    """The matrices of a plain unit are woven into each other, and small enough to be read once."""
    header = unit.source.header
    nbytes = (unit.stop - unit.start) * (header.nbytes // header.n_elements)
    is_woven = not all(is_row_by_row(matrix.view) for matrix in unit.matrices)
    return is_woven and nbytes <= SHARED_NBYTES


def _dtype(header: TensorHeader) -> np.dtype[Any]:
    return view_raw(b"", header.dtype_code).dtype
