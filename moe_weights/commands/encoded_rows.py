"""Some rows and columns of an encoded tensor: read from its parts and decoded in small pieces."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.checkpoint.tensor_reader import TensorBytes, open_tensor
from moe_weights.decode.encoding import Parts
from moe_weights.decode.raw_array import view_raw
from moe_weights.decode.row_cuts import (
    RowCuts,
    cut_columns,
    cut_tensor,
    part_range,
    row_ranges,
)
from moe_weights.decode.stored_tensor import StoredTensor

# What stored parts are turned into: values or codes.
Turn: TypeAlias = Callable[[StoredTensor, Parts], NDArray[Any]]

# A decoded piece stays in a core's own cache while every number of it is computed.
PIECE_NBYTES = 2**19
# Most stored bytes of a piece that needs few of the columns.
_READ_NBYTES = 2**22
_FLOAT_NBYTES = 4
# Values, those of the piece before, the copy of a view, and the codes with their scales.
_VALUE_COPIES = 4
# Stored parts as they were read, and as they are cut or widened.
_READ_COPIES = 2
# Decoding rows in between costs less than as many more pieces.
_MAX_DECODED_STEP = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Lattice:
    """Elements of a tensor (..., R, C) that a matrix needs.

    Attributes:
        first_row: Counted over all entries from the tensor's first row.
        n_rows: How many.
        row_step: Distance between neighbours; they may lie in different entries.
        first_col: First column.
        n_cols: How many.
        col_step: Distance between neighbours.
        is_transposed: The columns are the rows of the matrix.
    """

    first_row: int
    n_rows: int
    row_step: int
    first_col: int
    n_cols: int
    col_step: int
    is_transposed: bool = False

    @property
    def stop_col(self) -> int:
        """One past the last column."""
        return self.first_col + (self.n_cols - 1) * self.col_step + 1


class EncodedRows:
    """Open parts of an encoded tensor."""

    def __init__(
        self,
        source: StoredTensor,
        cuts: RowCuts,
        turn: Turn,
        roles: Sequence[str],
        opened: dict[str, TensorBytes],
        wholes: dict[str, NDArray[Any]],
    ) -> None:
        """Read nothing yet; see `open_rows`."""
        self._source = source
        self._cuts = cuts
        self._turn = turn
        self._roles = tuple(roles)
        self._opened = opened
        self._wholes = wholes
        self._headers = dict(source.parts)
        self._buffers: dict[str, NDArray[np.uint8]] = {}
        self._last: dict[str, tuple[int, int, NDArray[Any]]] = {}

    def pieces(self, wanted: Lattice) -> Iterator[NDArray[Any]]:
        """Yield what the parts are turned into, rows in order.

        Yields:
            (r, `n_cols`), maybe views; valid until the next one is asked for.

        Raises:
            CheckpointError: a shard cannot be read.
        """
        rows_per_entry = self._source.shape[-2]
        cols = wanted.first_col, wanted.stop_col
        height = piece_height(self._source, self._cuts, cols)
        step = wanted.row_step
        row, left = wanted.first_row, wanted.n_rows
        while left:
            entry, top = divmod(row, rows_per_entry)
            n_rows = 1
            if step <= _MAX_DECODED_STEP:
                n_rows = min(left, (rows_per_entry - top - 1) // step + 1)
            bottom = top + (n_rows - 1) * step + 1
            for first, last in row_ranges(self._cuts, top, bottom, height):
                skipped = (top - first) % step
                if first + skipped < last:
                    piece = self._turned(entry, (first, last), cols)
                    yield piece[skipped::step, :: wanted.col_step]
            row += n_rows * step
            left -= n_rows

    def _turned(self, entry: int, rows: tuple[int, int], cols: tuple[int, int]) -> NDArray[Any]:
        """Return some rows and columns of an entry."""
        first, last = _aligned(rows, self._cuts.row_grain, self._source.shape[-2])
        left, right = stored_cols(self._source, self._cuts, cols)
        parts = {role: self._read(role, entry, (first, last)) for role in self._roles}
        if right - left < self._source.shape[-1]:
            parts = cut_columns(self._cuts, parts, (left, right))
        first_row = entry * self._source.shape[-2] + first
        tensor = cut_tensor(self._source, (last - first, right - left), first_row)
        turned = self._turn(tensor, parts)
        return turned[rows[0] - first : rows[1] - first, cols[0] - left : cols[1] - left]

    def _read(self, role: str, entry: int, rows: tuple[int, int]) -> NDArray[Any]:
        header, cut = self._headers[role], self._cuts.parts[role]
        if not cut.rows:
            return self._read_whole(role, header)
        found = part_range(self._source, header, cut, entry, rows)
        last = self._last.get(role)
        if last is not None and last[:2] == (found.start, found.stop):
            return last[2]
        nbytes = found.stop - found.start
        buffer = self._buffers.get(role)
        if buffer is None or buffer.size < nbytes:
            buffer = self._buffers[role] = np.empty(nbytes, dtype=np.uint8)
        target = memoryview(buffer[:nbytes])
        self._opened[role].read_into(found.start, target)
        part = view_raw(target, header.dtype_code).reshape(found.shape)
        self._last[role] = found.start, found.stop, part
        return part

    def _read_whole(self, role: str, header: TensorHeader) -> NDArray[Any]:
        part = self._wholes.get(role)
        if part is None:
            target = memoryview(np.empty(header.nbytes, dtype=np.uint8))
            self._opened[role].read_into(0, target)
            part = self._wholes[role] = view_raw(target, header.dtype_code).reshape(header.shape)
        return part


@contextlib.contextmanager
def open_rows(
    source: StoredTensor,
    cuts: RowCuts,
    turn: Turn,
    roles: Sequence[str],
    root: Path,
    scratch_folder: Path | None,
    wholes: dict[str, NDArray[Any]],
) -> Iterator[EncodedRows]:
    """Open the parts of a tensor.

    Args:
        source: An encoded tensor.
        cuts: How its parts are cut.
        turn: What becomes of them.
        roles: The parts that `turn` needs.
        root: Model directory.
        scratch_folder: See `open_tensor`.
        wholes: Parts that are passed whole, by role; those that were read are found here later.
    """
    headers = dict(source.parts)
    with contextlib.ExitStack() as stack:
        opened = {
            role: stack.enter_context(open_tensor(root, headers[role], scratch_folder))
            for role in roles
            if role not in wholes
        }
        yield EncodedRows(source, cuts, turn, roles, opened, wholes)


def piece_height(source: StoredTensor, cuts: RowCuts, cols: tuple[int, int]) -> int:
    """Return how many rows a piece has at most, beside what `row_grain` adds.

    Args:
        source: An encoded tensor.
        cuts: How its parts are cut.
        cols: First column needed, one past the last.
    """
    left, right = stored_cols(source, cuts, cols)
    by_values = PIECE_NBYTES // (_FLOAT_NBYTES * (right - left))
    by_codes = _READ_NBYTES * source.n_elements // (source.header.nbytes * source.shape[-1])
    return max(1, min(by_values, by_codes))


def piece_nbytes(source: StoredTensor, cuts: RowCuts, cols: tuple[int, int]) -> int:
    """Return how many bytes reading and decoding a piece takes, at most.

    Args:
        source: An encoded tensor.
        cuts: How its parts are cut.
        cols: First column needed, one past the last.
    """
    rows_per_entry = source.shape[-2]
    left, right = stored_cols(source, cuts, cols)
    height = min(piece_height(source, cuts, cols) + cuts.row_grain - 1, rows_per_entry)
    sides = {role: cut.rows for role, cut in cuts.parts.items()}
    read = sum(
        _stored_nbytes(source, header, side, height)
        for role, header in source.parts
        if (side := sides.get(role))
    )
    kept = sum(header.nbytes for role, header in source.parts if sides.get(role) == 0)
    values = height * (right - left) * _FLOAT_NBYTES
    return kept + _READ_COPIES * read + _VALUE_COPIES * values


def stored_cols(source: StoredTensor, cuts: RowCuts, cols: tuple[int, int]) -> tuple[int, int]:
    """Return the columns that must be decoded for those that are needed."""
    if not cuts.col_grain:
        return 0, source.shape[-1]
    return _aligned(cols, cuts.col_grain, source.shape[-1])


def _stored_nbytes(source: StoredTensor, header: TensorHeader, side: int, height: int) -> int:
    n_rows = source.n_elements // source.shape[-1]
    nbytes_per_row = -(-header.nbytes * side // n_rows)
    return (height // side + 2) * nbytes_per_row


def _aligned(ends: tuple[int, int], grain: int, length: int) -> tuple[int, int]:
    return ends[0] // grain * grain, min(-(-ends[1] // grain) * grain, length)
