"""The matrices of a unit whose tensor is encoded, decoded in row blocks.

1. Where parts can be cut with rows, only the rows of one block are read and decoded at a time.
   Parts whose columns are the rows (GPTQ, AWQ) are read once, as they are packed, and kept.
2. A matrix that lies transposed is put together in bands of its rows from the stored rows.
3. What cannot be cut is decoded in the smallest slice that can, and kept for the unit's matrices.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.checkpoint.tensor_reader import open_tensor
from moe_weights.commands.encoded_rows import (
    PIECE_NBYTES,
    EncodedRows,
    Lattice,
    Turn,
    open_rows,
    piece_nbytes,
)
from moe_weights.commands.matrix_blocks import BAND_NBYTES, contiguous_blocks
from moe_weights.decode.raw_array import view_raw
from moe_weights.decode.resolve import codes_of_parts, decode_parts, row_cuts_of
from moe_weights.decode.row_cuts import RowCuts
from moe_weights.decode.stored_tensor import WEIGHT, StoredTensor, is_cut_with_experts
from moe_weights.extract.layout import MatrixView
from moe_weights.extract.work_unit import WorkUnit

_FLOAT_NBYTES = 4
# Values and their contiguous copy, or kept values while codes are unpacked.
_WHOLE_NBYTES_PER_ELEMENT = 10


class EncodedUnit:
    """The matrices of a unit of codes and companions."""

    def __init__(self, unit: WorkUnit, root: Path, scratch_folder: Path | None) -> None:
        """Read nothing yet.

        Args:
            unit: Of any encoding but "plain".
            root: Model directory.
            scratch_folder: See `open_tensor`.
        """
        self._unit = unit
        self._cuts = row_cuts_of(unit.source)
        self._root = root
        self._scratch_folder = scratch_folder
        self._parts: dict[str, NDArray[Any]] = {}
        self._wholes: dict[Turn, tuple[tuple[int, int], NDArray[Any]]] = {}

    def blocks(self, view: MatrixView) -> Iterator[NDArray[Any]]:
        """Yield a decoded matrix in row blocks; see `PlainUnit.blocks`."""
        cuts, rows = self._cuts, stored_rows(self._unit, view)
        if cuts is None or rows is None:
            yield from self._whole_blocks(decode_parts, tuple(self._headers()), view)
            return
        with open_rows(
            self._unit.source,
            cuts,
            decode_parts,
            tuple(cuts.parts),
            self._root,
            self._scratch_folder,
            self._parts,
        ) as opened:
            if rows.is_transposed:
                yield from _bands(opened, rows)
            else:
                for piece in opened.pieces(rows):
                    yield np.require(piece, requirements=["C", "A"])

    def code_blocks(self, view: MatrixView) -> Iterator[NDArray[Any]]:
        """Yield the stored codes of a matrix: one for each of its elements, in any order.

        Args:
            view: See `blocks`.

        Yields:
            Two axes, one byte each; valid until the next one is asked for.

        Raises:
            CheckpointError: the shard cannot be read.
        """
        cuts, rows = self._cuts, stored_rows(self._unit, view)
        if cuts is None or rows is None:
            yield from self._whole_blocks(codes_of_parts, (WEIGHT,), view)
            return
        with open_rows(
            self._unit.source,
            cuts,
            codes_of_parts,
            (WEIGHT,),
            self._root,
            self._scratch_folder,
            self._parts,
        ) as opened:
            yield from opened.pieces(rows)

    def _headers(self) -> dict[str, TensorHeader]:
        return dict(self._unit.source.parts)

    def _whole_blocks(
        self, turn: Turn, roles: tuple[str, ...], view: MatrixView
    ) -> Iterator[NDArray[Any]]:
        """Turn the entries of the first axis that a matrix needs, and keep them."""
        source, start = self._unit.source, self._unit.start
        per_entry = source.n_elements // source.shape[0]
        first, last = _entries_of(source, start + view.offset, start + view.stop)
        kept = self._wholes.get(turn)
        if kept is None or kept[0] != (first, last):
            del kept
            self._wholes.pop(turn, None)  # before the next ones need room
            parts = {role: self._read_part(role, first, last) for role in roles}
            flat = np.ascontiguousarray(turn(source, parts)).reshape(-1)
            self._wholes[turn] = kept = (first, last), flat
        yield from contiguous_blocks(kept[1], view.shifted(start - first * per_entry))

    def _read_part(self, role: str, first: int, last: int) -> NDArray[Any]:
        """Read a stored part, cut to entries of the first axis where it has that axis."""
        source, header = self._unit.source, self._headers()[role]
        start, stop, shape = 0, header.nbytes, header.shape
        if (first, last) != (0, source.shape[0]) and is_cut_with_experts(role, header, source):
            per_entry = header.nbytes // shape[0]
            start, stop = first * per_entry, last * per_entry
            shape = (last - first, *shape[1:])
        with open_tensor(self._root, header, self._scratch_folder) as stored:
            return view_raw(stored.read(start, stop), header.dtype_code).reshape(shape)


def stored_rows(unit: WorkUnit, view: MatrixView) -> Lattice | None:
    """Return the stored rows and columns of a matrix; None where it follows neither.

    Args:
        unit: The matrix's unit.
        view: Its place, counted from the unit's start.

    """
    length = unit.source.shape[-1]
    row, col = divmod(unit.start + view.offset, length)
    by_row, by_col = (view.rows, view.row_stride), (view.cols, view.col_stride)
    for is_transposed in (False, True):
        (n_rows, row_stride), (n_cols, col_stride) = (
            (by_col, by_row) if is_transposed else (by_row, by_col)
        )
        col_step = col_stride if n_cols > 1 else 1
        row_step, rest = divmod(row_stride, length) if n_rows > 1 else (1, 0)
        if not rest and row_step > 0 and col_step > 0 and col + (n_cols - 1) * col_step < length:
            return Lattice(
                first_row=row,
                n_rows=n_rows,
                row_step=row_step,
                first_col=col,
                n_cols=n_cols,
                col_step=col_step,
                is_transposed=is_transposed,
            )
    return None


def encoded_nbytes(unit: WorkUnit) -> int:
    """Return how many bytes `EncodedUnit` holds for a unit, at most.

    Args:
        unit: Of any encoding but "plain".
    """
    cuts = row_cuts_of(unit.source)
    return max(_matrix_nbytes(unit, cuts, matrix.view) for matrix in unit.matrices)


def _matrix_nbytes(unit: WorkUnit, cuts: RowCuts | None, view: MatrixView) -> int:
    source, rows = unit.source, stored_rows(unit, view)
    if cuts is None or rows is None:
        first, last = _entries_of(source, unit.start + view.offset, unit.start + view.stop)
        n_elements = (last - first) * (source.n_elements // source.shape[0])
        # Stored parts are held while they are decoded; those without the first axis, whole.
        return n_elements * _WHOLE_NBYTES_PER_ELEMENT + sum(
            header.nbytes * (last - first) // source.shape[0]
            if is_cut_with_experts(role, header, source)
            else header.nbytes
            for role, header in source.parts
        )
    if not rows.is_transposed:
        return piece_nbytes(source, cuts, (rows.first_col, rows.stop_col))
    n_lines = _lines_in_band(rows)
    # The last band may be narrower than the others, and its pieces higher.
    pieces = max(
        piece_nbytes(source, cuts, (lines.first_col, lines.stop_col)) for lines in _bands_of(rows)
    )
    return n_lines * rows.n_rows * _FLOAT_NBYTES + pieces


def _entries_of(source: StoredTensor, start: int, stop: int) -> tuple[int, int]:
    """Return the first entry of the first axis, and one past the last, that are decoded together.

    Args:
        source: The tensor.
        start: First element needed.
        stop: One past the last element.
    """
    if not is_cut_with_experts(WEIGHT, source.header, source):
        return 0, source.shape[0]
    per_entry = source.n_elements // source.shape[0]
    return start // per_entry, -(-stop // per_entry)


def _lines_in_band(rows: Lattice) -> int:
    """Return how many stored columns of a transposed matrix are put together at a time."""
    return max(1, min(rows.n_cols, BAND_NBYTES // (rows.n_rows * _FLOAT_NBYTES)))


def _bands(opened: EncodedRows, rows: Lattice) -> Iterator[NDArray[Any]]:
    """Yield a matrix whose rows are stored columns."""
    height = max(1, PIECE_NBYTES // (rows.n_rows * _FLOAT_NBYTES))
    band = np.empty((_lines_in_band(rows), rows.n_rows), dtype=np.float32)
    for lines in _bands_of(rows):
        done = 0
        for piece in opened.pieces(lines):
            band[: lines.n_cols, done : done + len(piece)] = piece.T
            done += len(piece)
        for top in range(0, lines.n_cols, height):
            yield band[top : min(top + height, lines.n_cols)]


def _bands_of(rows: Lattice) -> Iterator[Lattice]:
    """Yield the stored columns that are put together at a time."""
    n_lines = _lines_in_band(rows)
    for first in range(0, rows.n_cols, n_lines):
        yield replace(
            rows,
            first_col=rows.first_col + first * rows.col_step,
            n_cols=min(n_lines, rows.n_cols - first),
        )
