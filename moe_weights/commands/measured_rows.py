"""From numbers in plan order to rows of the two measured tables.

What names a matrix stands in the plan already, so workers hand over numbers alone and rows are put
together one cell at a time: a model of a million matrices fits into little memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_weights.checkpoint.dtype_codes import dtype_name
from moe_weights.columns import Cell, Column
from moe_weights.commands.work import COUNTS, UnitResult, quantised_dtype
from moe_weights.extract.work_unit import PlannedMatrix, WorkUnit
from moe_weights.quantize.choose_backend import BackendChoice
from moe_weights.quantize.error import NUMBER_COLUMNS
from moe_weights.quantize.round_trip import SchemeSpec
from moe_weights.tables.matrix_stats import block4_of

_Key = Callable[[WorkUnit, PlannedMatrix], Cell]

_KEYS: dict[str, _Key] = {
    "file": lambda unit, _matrix: unit.source.header.file,
    "source_tensor": lambda unit, _matrix: unit.source.header.name,
    "derived_tensor": lambda _unit, matrix: matrix.derived_tensor,
    "layer": lambda _unit, matrix: matrix.layer,
    "block4": lambda _unit, matrix: block4_of(matrix.layer),
    "proj": lambda _unit, matrix: matrix.proj,
    "expert_id": lambda _unit, matrix: matrix.expert_id,
    "is_routed_expert": lambda _unit, matrix: matrix.is_routed_expert,
    "is_shared_expert": lambda _unit, matrix: matrix.is_shared_expert,
    "rows": lambda _unit, matrix: matrix.view.rows,
    "cols": lambda _unit, matrix: matrix.view.cols,
    "dtype": lambda unit, _matrix: dtype_name(unit.source.header.dtype_code),
    "extracted_via": lambda unit, _matrix: unit.extracted_via,
    "encoding": lambda unit, _matrix: unit.source.encoding,
    "layout_evidence": lambda unit, _matrix: unit.layout_evidence,
}


class LazyRow(Mapping[str, Cell]):
    """One row, whose cells are made when they are asked for."""

    __slots__ = ("_index", "_table")

    def __init__(self, table: MatrixRows | QuantRows, index: int) -> None:
        """Remember where the cells come from."""
        self._table = table
        self._index = index

    def __getitem__(self, name: str) -> Cell:
        """Return a cell.

        Raises:
            KeyError: the table has no such column.
        """
        return self._table.cell(self._index, name)

    def __iter__(self) -> Iterator[str]:
        """Give the column names."""
        return iter(self._table.names)

    def __len__(self) -> int:
        """Return the number of columns."""
        return len(self._table.names)


class MatrixRows(Sequence[LazyRow]):
    """Rows of matrix_stats, in plan order."""

    def __init__(
        self,
        units: Sequence[WorkUnit],
        results: Sequence[UnitResult],
        metrics: Sequence[Column],
        *,
        has_several_stacks: bool,
    ) -> None:
        """Join plan and numbers.

        Args:
            units: The plan's units.
            results: Of all their matrices, in the same order.
            metrics: What each column of `UnitResult.measured` is.
            has_several_stacks: Rows name their stack; with one stack the column stays empty.
        """
        self.matrices = [(unit, matrix) for unit in units for matrix in unit.matrices]
        self.fingerprints = [text for result in results for text in result.fingerprints]
        self.constant = [flag for result in results for flag in result.constant]
        self._numbers = _joined([result.measured for result in results], len(metrics))
        self._counts = np.concatenate(
            [np.empty((0, len(COUNTS)), dtype=np.int64), *(result.counts for result in results)]
        )
        self._places = _places(metrics)
        self._has_several_stacks = has_several_stacks
        self.names = (*_KEYS, "stack", *self._places)
        if not len(self.matrices) == len(self.fingerprints) == len(self._numbers):
            raise AssertionError("the results are not those of the plan")

    def __len__(self) -> int:
        """Return the number of matrices."""
        return len(self.matrices)

    def __getitem__(self, index: Any) -> Any:
        """Return a row."""
        return LazyRow(self, range(len(self))[index])

    def cell(self, index: int, name: str) -> Cell:
        """Return one cell."""
        place = self._places.get(name)
        if place is not None:
            return _cell(self._numbers[index, place[0]], is_count=place[1])
        if name in COUNTS:  # findings need them, also where they are no column
            return int(self._counts[index, COUNTS.index(name)])
        unit, matrix = self.matrices[index]
        if name == "stack":
            return matrix.stack if self._has_several_stacks else ""
        return _KEYS[name](unit, matrix)


class QuantRows(Sequence[LazyRow]):
    """Rows of quant_sim: all schemes of the first matrix, then of the second."""

    def __init__(
        self,
        matrices: MatrixRows,
        results: Sequence[UnitResult],
        schemes: Sequence[SchemeSpec],
        backends: BackendChoice,
    ) -> None:
        """Join plan and numbers.

        Args:
            matrices: The rows of the matrices.
            results: Of all matrices, in plan order.
            schemes: In the order in which they were simulated.
            backends: What quantised.
        """
        self._matrices = matrices
        self._numbers = _joined([result.simulated for result in results], len(NUMBER_COLUMNS))
        self._errors = [error for result in results for error in result.errors]
        self._places: dict[str, tuple[int, bool]] = _places(NUMBER_COLUMNS)
        self._schemes = schemes
        self._backends = backends
        self.names = (*matrices.names, *_SCHEME_KEYS, "error", "backend", "quant_dtype")
        if not len(self._errors) == len(self._numbers) == len(matrices) * len(schemes):
            raise AssertionError("the results are not those of the plan")

    def __len__(self) -> int:
        """Return the number of simulations."""
        return len(self._errors)

    def __getitem__(self, index: Any) -> Any:
        """Return a row."""
        return LazyRow(self, range(len(self))[index])

    def cell(self, index: int, name: str) -> Cell:
        """Return one cell."""
        place = self._places.get(name)
        if place is not None:
            return _cell(self._numbers[index, place[0]], is_count=place[1])
        matrix, scheme = divmod(index, len(self._schemes))
        if name in _SCHEME_KEYS:
            return _SCHEME_KEYS[name](self._schemes[scheme])
        if name == "error":
            return self._errors[index]
        if name in {"backend", "quant_dtype"}:
            dtype = quantised_dtype(self._matrices.matrices[matrix][0])
            if name == "quant_dtype":
                return dtype
            return self._backends.name_of(self._schemes[scheme].name, dtype)
        return self._matrices.cell(matrix, name)

    def failed(self) -> list[LazyRow]:
        """Return the rows without numbers."""
        return [self[i] for i, error in enumerate(self._errors) if error is not None]


_SCHEME_KEYS: dict[str, Callable[[SchemeSpec], Cell]] = {
    "scheme": lambda scheme: scheme.name,
    "mode": lambda scheme: scheme.mode,
    "bits": lambda scheme: scheme.bits,
    "group_size": lambda scheme: scheme.group_size,
}


def _places(columns: Sequence[Column]) -> dict[str, tuple[int, bool]]:
    """Return position of each column among the numbers, and whether it holds counts."""
    return {column.name: (i, column.dtype == "int64") for i, column in enumerate(columns)}


def _joined(arrays: Sequence[NDArray[np.float64]], width: int) -> NDArray[np.float64]:
    return np.concatenate([np.empty((0, width)), *arrays])


def _cell(number: float, *, is_count: bool) -> Cell:
    if number != number:  # NaN stands for null
        return None
    return int(number) if is_count else float(number)
