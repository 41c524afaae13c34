"""One matrix under one scheme: the numbers of a quant_sim row, or why there are none."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_weights.columns import Cell
from moe_weights.quantize.error import NUMBER_COLUMNS, ErrorSums
from moe_weights.quantize.round_trip import QuantBackend, SchemeSpec
from moe_weights.quantize.stored_weights import refuse_shape

_EMPTY: dict[str, Cell] = dict.fromkeys([column.name for column in NUMBER_COLUMNS])


class SchemeMeter:
    """Takes a matrix as blocks of rows and says how far its quantised form is from it.

    The numbers do not depend on how rows were cut into blocks.
    """

    def __init__(
        self,
        rows: int,
        cols: int,
        dtype: np.dtype[Any],
        scheme: SchemeSpec,
        backend: QuantBackend,
        eps: float,
    ) -> None:
        """Prepare for one matrix; never raises for a scheme that does not fit.

        Args:
            rows: Rows of the whole matrix.
            cols: Its columns.
            dtype: The dtype it is quantised in; float16, bfloat16 or float32.
            scheme: How to quantise.
            backend: What quantises.
            eps: See `ErrorSums.cells`.
        """
        self._scheme = scheme
        self._backend = backend
        self._eps = eps
        self._sums = ErrorSums(scheme, dtype)
        self._error = ""
        try:
            refuse_shape(scheme, rows, cols)
        except ValueError as error:
            self._error = _describe(error)

    def add(self, block: NDArray[Any]) -> None:
        """Take the next rows; a scheme that fails is remembered and the rest ignored.

        Args:
            block: (r, C) contiguous, of the dtype of the meter; any number of rows.
        """
        if self._error or not block.size:
            return
        try:
            self._backend.add_errors(block, self._scheme, self._sums)
        except Exception as error:  # a scheme that fails must not take the run with it
            self._error = _describe(error)

    def finish(self) -> dict[str, Cell]:
        """Return the numbers of all rows taken.

        Returns:
            `NUMBER_COLUMNS` plus `error`: null, or "<Type>: <message>" with every number null.
        """
        if not self._error:
            try:
                return self._sums.cells(self._eps) | {"error": None}
            except (ValueError, OverflowError) as error:
                self._error = _describe(error)
        return not_simulated(self._error)


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def as_quantised_dtype(matrix: NDArray[Any]) -> NDArray[Any]:
    """Return the matrix in the dtype it is quantised in: its own, or float32 for float64.

    What is beyond the range of float32 becomes infinite, and no warning is given.
    """
    if matrix.dtype != np.float64:
        return matrix
    with np.errstate(over="ignore"):
        return matrix.astype(np.float32)


def not_simulated(cause: str) -> dict[str, Cell]:
    """Return the columns of a row that could not be simulated at all."""
    return _EMPTY | {"error": cause}
