"""One matrix becomes its numbers, block of rows by block of rows.

1. `add` every row. 16-bit types need no more, unless there are too many groups to keep their
   ratios; a block is looked at once, in one kernel call.
2. While `needs_another_pass`: `add_again` every row. float32 needs one further pass, float64 one
   to three, and more where `percentiles_abs` lists many.
3. `finish`.

Results do not depend on how rows are cut into blocks, on the machine, or on its vector width.
Memory: about 1.5 MiB of counts, R + 3 C numbers, at most 32 MiB of group ratios; in further passes
at most 16 MiB more. Counts and ratios lie in a `Scratch` that the next matrix takes over.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_weights.columns import Cell
from moe_weights.measure import block_pass
from moe_weights.measure.distinct_codes import DistinctCodes
from moe_weights.measure.elements import ElementCounts, NarrowElements, WideElements
from moe_weights.measure.fingerprint import fingerprint_keys, finish_fingerprint
from moe_weights.measure.float_format import format_of
from moe_weights.measure.group_ratios import MOST_KEPT_RATIOS, GroupRatios
from moe_weights.measure.matrix_measurement import MatrixMeasurement
from moe_weights.measure.metric_table import group_outlier_names, metric_columns
from moe_weights.measure.moments import describe, outlier_ratios
from moe_weights.measure.norm_spread import add_numbers, norm_spread
from moe_weights.measure.row_order import (
    RowOrder,
    column_squares,
    make_row_order,
    order_of_single_rows,
)
from moe_weights.measure.sampled_elements import SampledElements
from moe_weights.measure.scratch import Scratch
from moe_weights.measure.settings import MeasureSettings, percentiles_by_column

# Sums of squares of float64 weights, scaled so that the largest is about 1, are exact above it.
_LEAST_SQUARE = 2.0**-960


class MatrixMeter:
    """Measures one matrix (R, C) of float16, bfloat16, float32 or float64."""

    def __init__(
        self,
        rows: int,
        cols: int,
        dtype: np.dtype[Any],
        settings: MeasureSettings,
        sampled: NDArray[np.int64] | None = None,
        *,
        scratch: Scratch | None = None,
        most_kept_ratios: int = MOST_KEPT_RATIOS,
    ) -> None:
        """Prepare for a matrix.

        Args:
            rows: R, at least 1.
            cols: C, at least 1.
            dtype: float16, bfloat16, float32 or float64.
            settings: What to measure.
            sampled: Flat indices that percentiles are taken from; None means all elements.
            scratch: Arrays that the meter before had, which must be done; None makes new ones.
            most_kept_ratios: Above it, group ratios are not kept but looked at again.

        Raises:
            TypeError: weights of this dtype cannot be measured.
            ValueError: the matrix has no elements.
        """
        if rows < 1 or cols < 1:
            raise ValueError(f"a matrix ({rows}, {cols}) has nothing to measure")
        self._rows, self._cols, self._settings = rows, cols, settings
        self._dtype = np.dtype(dtype)
        self._format = format_of(self._dtype)
        self._most_kept_ratios = most_kept_ratios
        self._scratch = Scratch() if scratch is None else scratch
        self._counts = ElementCounts(self._format, rows * cols, self._scratch)
        self._fingerprint = np.zeros(2, dtype=np.uint64)
        self._wide: WideElements | None = None
        self._codes: DistinctCodes | None = None
        self._sampled: SampledElements | None = None
        if sampled is not None and sampled.size < rows * cols:
            self._sampled = SampledElements(sampled)
        self._n_seen = self._n_passes = 0
        self._first_bits: Any = 0
        # The scale of float64 is known after the first pass.
        self._has_order = self._format.width != 64
        if self._has_order:
            self._begin_order(1.0, 1.0)

    @property
    def needs_another_pass(self) -> bool:
        """All rows were added and must be shown again, all of them, by `add_again`."""
        if self._n_passes == 0 or not self._counts.is_finite:
            return False
        if self._wide is not None and self._wide.needs_another_pass:
            return True
        return bool(self._groups.searches)

    def add(self, block: NDArray[Any]) -> None:
        """Measure the next rows.

        Args:
            block: (r, C), contiguous, of the matrix's dtype; no reference is kept. A block that
                cannot be written to is copied, as kernels are compiled for blocks that can.

        Raises:
            ValueError: it does not fit the matrix, or there are more rows than the matrix has.
        """
        if self._n_passes:
            raise ValueError("all rows were added already; further passes use add_again")
        bits = self._bits_of(block)
        if not bits.size:
            return
        counts = self._counts
        if self._n_seen == 0:
            self._first_bits = bits[0, 0]
        if self._sampled is not None:
            self._sampled.add(block, self._n_seen * self._cols)
        prints = (fingerprint_keys(), self._fingerprint)
        if self._format.width == 16:
            block_pass.measure_narrow_rows(
                bits, counts.fast, counts.counts, counts.state,
                *prints, self._order, self._groups.store,
            )  # fmt: skip
        elif self._format.width == 32:
            block_pass.measure_single_rows(
                bits, counts.fast, counts.counts, counts.low_sums, self._first_bits, counts.state,
                *prints, self._order, self._groups.store,
            )  # fmt: skip
        else:
            block_pass.measure_double_rows(
                bits, counts.counts, counts.low_sums, self._first_bits, counts.state, *prints
            )
        if self._advance(bits):
            self._end_first_pass()

    def add_again(self, block: NDArray[Any]) -> None:
        """Look at rows once more; from the first row on in each pass.

        Args:
            block: (r, C), as for `add`, cut in any way.

        Raises:
            ValueError: no pass is needed, the block does not fit the matrix, or the elements that
                ranks are sought among are not as many as in the first pass. Other changes go
                unseen: who reads a file must see to it that it stays the same.
        """
        if not self.needs_another_pass:
            raise ValueError("the matrix needs no further pass")
        bits = self._bits_of(block)
        if not bits.size:
            return
        wide = self._wide
        if wide is not None and wide.needs_another_pass:
            wide.add_again(bits)
        if not self._has_order:
            block_pass.order_rows(bits, self._n_seen, self._order, self._groups.store)
        else:
            for j, selection in self._groups.searches:
                block_pass.search_ratio_rows(
                    bits, self._again, self._groups.store, j, *selection.arguments
                )
        if self._advance(bits):
            self._end_pass()

    def add_codes(self, codes: NDArray[Any]) -> None:
        """See stored codes of some elements of an encoded matrix, in any order.

        Args:
            codes: Any shape; one or two bytes each.

        Raises:
            TypeError: a code has more than two bytes.
        """
        if self._codes is None:
            self._codes = DistinctCodes()
        self._codes.add(codes)

    def finish(self) -> MatrixMeasurement:
        """Return the numbers.

        Raises:
            ValueError: rows are missing, or a further pass.
        """
        if self._n_passes == 0:
            raise ValueError(f"only {self._n_seen} of {self._rows} rows were added")
        if self.needs_another_pass:
            raise ValueError("the matrix needs another pass")
        counts = self._counts
        fingerprint = self._fingerprint.copy()
        finish_fingerprint(fingerprint, self._rows, self._cols)
        columns = metric_columns(self._settings)
        known: dict[str, Cell] = {
            "n_zero": counts.n_zero,
            "n_denormal": counts.n_denormal,
            "n_nan": counts.n_nan,
            "n_inf": counts.n_inf,
            "n_distinct": counts.n_distinct if self._codes is None else self._codes.count,
        }
        if counts.is_finite:
            known |= self._finite_values()
        return MatrixMeasurement(
            values={column.name: known.get(column.name) for column in columns},
            fingerprint="".join(f"{word:016x}" for word in fingerprint.tolist()),
            is_constant=counts.is_constant,
            n_zero=counts.n_zero,
            n_nan=counts.n_nan,
            n_inf=counts.n_inf,
        )

    def _bits_of(self, block: NDArray[Any]) -> NDArray[Any]:
        if block.ndim != 2 or block.shape[1] != self._cols or block.dtype != self._dtype:
            raise ValueError(
                f"a block {block.shape} of {block.dtype.name} does not fit a matrix "
                f"({self._rows}, {self._cols}) of {self._dtype.name}"
            )
        if self._n_seen + block.shape[0] > self._rows:
            raise ValueError(
                f"{self._n_seen + block.shape[0]} rows were given to a matrix of {self._rows}"
            )
        return self._format.bits_of(np.require(block, requirements=["C", "A", "W"]))

    def _advance(self, bits: NDArray[Any]) -> bool:
        """Count the rows of a block; True at the end of a pass."""
        self._n_seen += bits.shape[0]
        if self._n_seen < self._rows:
            return False
        self._n_seen = 0
        self._n_passes += 1
        return True

    def _begin_order(self, square_scale: float, sum_scale: float) -> None:
        """Make empty sums by row, column and group."""
        settings = self._settings
        rows, cols = self._rows, self._cols
        sizes = sorted({n for n in settings.group_sizes if n > 0 and cols % n == 0})
        self._order = make_row_order(rows, cols, sizes, self._format, square_scale, sum_scale)
        self._groups = GroupRatios(
            rows, cols, sizes, self._order.chunk, settings.eps, settings.group_outlier_percentile,
            self._scratch, most_kept=self._most_kept_ratios,
        )  # fmt: skip

    @cached_property
    def _again(self) -> RowOrder:
        """Sums that only serve to make ratios again."""
        return order_of_single_rows(self._order)

    def _end_first_pass(self) -> None:
        self._counts.close()
        if not self._counts.is_finite:
            return
        if self._format.width > 16:
            wanted = percentiles_by_column(self._settings) if self._sampled is None else {}
            self._wide = WideElements(self._counts, list(wanted.values()))
        if self._has_order:
            self._groups.end_first_pass()
        elif self._wide is not None:
            self._begin_order(self._wide.scale, self._wide.sum_scale)

    def _end_pass(self) -> None:
        if self._wide is not None and self._wide.needs_another_pass:
            self._wide.end_pass()
        if self._has_order:
            for _j, selection in self._groups.searches:
                selection.end_pass()
        else:
            self._has_order = True
            self._groups.end_first_pass()

    def _finite_values(self) -> dict[str, Cell]:
        settings, wanted = self._settings, percentiles_by_column(self._settings)
        row_squares = self._order.row_squares
        source: NarrowElements | WideElements | SampledElements
        if self._wide is None:
            source = NarrowElements(self._counts)
            sums = source.power_sums()
        else:
            source = self._wide
            sums = source.power_sums(add_numbers(row_squares)[0])
        if self._sampled is not None:
            source = self._sampled
        values = describe(sums)
        percentiles = source.abs_percentiles(list(wanted.values()))
        values |= zip(wanted, percentiles, strict=True)
        values |= outlier_ratios(values, settings.eps)
        for size, pair in self._groups.results().items():
            values |= zip(group_outlier_names(size, settings), pair, strict=True)
        all_squares = {"row": row_squares, "col": column_squares(self._order, self._cols)}
        for name, squares in all_squares.items():
            if self._format.width == 64:
                squares = np.where(squares < _LEAST_SQUARE, 0.0, squares)
            values |= norm_spread(name, squares)
        return values
