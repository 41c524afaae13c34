"""How much memory does a work unit take while it is measured? Known from the plan alone."""

from __future__ import annotations

from collections.abc import Sequence

from moe_weights.commands.encoded_unit import encoded_nbytes
from moe_weights.commands.matrix_blocks import (
    BAND_NBYTES,
    BLOCK_NBYTES,
    is_row_by_row,
    is_shared,
)
from moe_weights.errors import UsageError
from moe_weights.extract.layout import MatrixView
from moe_weights.extract.work_unit import WorkUnit
from moe_weights.measure.group_ratios import MOST_KEPT_RATIOS
from moe_weights.measure.settings import MeasureSettings
from moe_weights.quantize.mlx_backend import PIECE_WEIGHTS

# A block of 16-bit weights may be widened to float32 and back; a row is never cut.
_BLOCK_COPIES = 4
# Counts of bit patterns, and what further passes select from.
_METER_NBYTES = 18 * 2**20
# Numbers for each row and column of a matrix: sums, those of the pass before, norms in order, and
# for a column what the quantiser brings back of a row.
_PER_ROW = 5
_PER_COLUMN = 11
# What a row of each table takes from the first number to the written file.
_ROW_NBYTES = 2048
_QUANT_ROW_NBYTES = 512
# Code that is loaded late (encoders of tables, compiled kernels) and the allocator's slack.
_FIXED_NBYTES = 96 * 2**20
# MLX's graph of a piece of a block, for each weight: it compares it with every code of a table.
_MLX_NBYTES_PER_WEIGHT = 160


def unit_nbytes(unit: WorkUnit, measure: MeasureSettings, *, uses_mlx: bool) -> int:
    """Return how many bytes a worker holds for a unit, at most.

    Args:
        unit: Any unit of the plan.
        measure: How its matrices are measured.
        uses_mlx: MLX itself quantises them.
    """
    largest = max(unit.matrices, key=lambda matrix: matrix.view.rows * matrix.view.cols)
    header = unit.source.header
    is_plain = unit.source.encoding == "plain"
    width = header.nbytes // header.n_elements if is_plain else 4
    longest_row = max(matrix.view.cols for matrix in unit.matrices) * width
    state = _meter_nbytes(largest.view.rows, largest.view.cols, measure)
    blocks = _BLOCK_COPIES * max(BLOCK_NBYTES, longest_row)
    weights = _plain_nbytes(unit, width) if is_plain else encoded_nbytes(unit)
    pieces = 0
    if uses_mlx:
        in_block = max(BLOCK_NBYTES, longest_row) // width
        pieces = min(in_block, PIECE_WEIGHTS) * _MLX_NBYTES_PER_WEIGHT
    return state + blocks + weights + pieces


def _meter_nbytes(rows: int, cols: int, measure: MeasureSettings) -> int:
    """Return what `MatrixMeter` holds for a matrix, see there."""
    ratios = sum(
        min(rows * cols // size, MOST_KEPT_RATIOS) for size in measure.group_sizes if size > 0
    )
    return _METER_NBYTES + 8 * (_PER_ROW * rows + _PER_COLUMN * cols + ratios)


def _plain_nbytes(unit: WorkUnit, width: int) -> int:
    if all(is_row_by_row(matrix.view) for matrix in unit.matrices):
        return 0
    if is_shared(unit):
        return (unit.stop - unit.start) * width
    return max(_gathered_nbytes(matrix.view, width) for matrix in unit.matrices)


def _gathered_nbytes(view: MatrixView, width: int) -> int:
    """Return what is held of a matrix whose rows do not lie one after the other."""
    if view.col_stride <= view.row_stride:
        return ((view.cols - 1) * view.col_stride + 1) * width
    band_rows = max(1, min(view.rows, BAND_NBYTES // (view.cols * width)))
    line_nbytes = ((band_rows - 1) * view.row_stride + 1) * width
    return band_rows * view.cols * width + line_nbytes


def memory_for_units(
    units: Sequence[WorkUnit],
    measure: MeasureSettings,
    *,
    n_schemes: int,
    uses_mlx: bool,
    max_memory: int,
    taken: int,
) -> int:
    """Return how many bytes of weights the workers of one process may hold together.

    Args:
        units: The plan's units.
        measure: How matrices are measured.
        n_schemes: Schemes simulated for each matrix.
        uses_mlx: MLX itself quantises some of them.
        max_memory: All that the process may take beyond the interpreter and its libraries.
        taken: What it has taken already, for plan and headers.

    Raises:
        UsageError: the largest unit does not fit.
    """
    n_matrices = sum(len(unit.matrices) for unit in units)
    rows = n_matrices * (_ROW_NBYTES + n_schemes * _QUANT_ROW_NBYTES)
    reserve = taken + rows + _FIXED_NBYTES

    def nbytes(unit: WorkUnit) -> int:
        return unit_nbytes(unit, measure, uses_mlx=uses_mlx)

    largest = max(units, key=nbytes, default=None)
    needed = 0 if largest is None else nbytes(largest)
    if largest is not None and reserve + needed > max_memory:
        raise UsageError(
            f"--max-memory is {max_memory} bytes, but {reserve + needed} are needed: {reserve} for "
            f"plan and tables, {needed} to measure {largest.source.header.name}; give at least "
            f"--max-memory {-(-(reserve + needed) // 2**20)}MiB"
        )
    return max_memory - reserve
