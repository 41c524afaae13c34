"""What the elements of a matrix are, wherever they stand: counts, sums and order statistics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_weights.measure import pattern_counts as pc
from moe_weights.measure.block_pass import add_row_powers
from moe_weights.measure.float_format import (
    N_CLASSES,
    N_MAGNITUDE_CLASSES,
    FloatFormat,
    class_values,
)
from moe_weights.measure.moments import PowerSums
from moe_weights.measure.order_statistics import percentiles_among
from moe_weights.measure.rank_selection import RankSelection, classes_of_ranks
from moe_weights.measure.scratch import Scratch
from moe_weights.measure.vector_lanes import N_LANES

# float64 keys of one class that are kept in a pass: 8 MiB.
_MOST_SORTED = 2**20
# Classes of so few float32 keys are cheaper to keep than to count: 512 KiB.
_MOST_SORTED_SINGLE = 2**16
# Powers of two by which float64 is scaled without leaving its range.
_MOST_SCALED = 1000
_SAFE_TO_RAISE = 2.0**800
_RAISED = 2.0**64


class ElementCounts:
    """How often each class of patterns occurs, and what follows without a second look.

    Attributes:
        counts: (65536,) by class; complete after `close`.
        magnitudes: (32768,) by class without the sign; known after `close`.
        low_sums: (parts, 65536), see `pattern_counts.exact_sums`.
        fast: What is counted and not yet in `counts`; of float64, nothing.
        state: See `pattern_counts`.
    """

    def __init__(self, number_format: FloatFormat, n_elements: int, scratch: Scratch) -> None:
        """Make empty counts, in `scratch`, for a matrix of `n_elements`."""
        self.format = number_format
        self.n_elements = n_elements
        n_parts = {16: 0, 32: 1, 64: 2}[number_format.width]
        self.counts = scratch.zeros("counts", (N_CLASSES,), np.int64)
        self.low_sums = scratch.zeros("low sums", (n_parts, N_CLASSES), np.int64)
        fast_type = np.uint32 if number_format.width == 16 else np.uint64
        self.fast = scratch.zeros("fast", (N_CLASSES,), fast_type)
        self.magnitudes = scratch.empty("magnitudes", (N_MAGNITUDE_CLASSES,), np.int64)
        self.state = np.zeros(pc.N_STATE, dtype=np.int64)

    def close(self) -> None:
        """Take note that all elements were counted."""
        limit = self.format.not_finite_class
        if self.format.width == 16:
            pc.empty_narrow(self.fast, self.counts, self.state)
        elif self.format.width == 32:
            pc.empty_single(self.fast, self.counts, self.low_sums, self.state)
        n_distinct, self.first, self.last, n_small, n_not_finite = pc.close_counts(
            self.counts, limit, 1 << self.format.class_fraction_bits, self.magnitudes
        )
        if self.format.width == 16:
            self.n_zero = int(self.magnitudes[0])
            self.n_inf = int(self.magnitudes[limit])
            self.n_distinct: int | None = n_distinct
            self.is_constant = n_distinct == 1
        else:
            self.n_zero = int(self.state[pc.N_ZERO])
            self.n_inf = int(self.state[pc.N_INF])
            self.n_distinct = None
            self.is_constant = not self.state[pc.DIFFERS]
        self.n_nan = n_not_finite - self.n_inf
        self.n_denormal = n_small - self.n_zero

    @property
    def is_finite(self) -> bool:
        """No element is NaN or infinite."""
        return not (self.n_nan or self.n_inf)


class NarrowElements:
    """Moments and percentiles of a finite 16-bit matrix: all from the counts."""

    def __init__(self, counts: ElementCounts) -> None:
        """Take closed counts."""
        self._counts = counts

    def power_sums(self) -> PowerSums:
        """Return the sums over all elements."""
        counts, n = self._counts, self._counts.n_elements
        max_abs = float(class_values(counts.format)[counts.last])
        total, magnitudes = pc.exact_sums(
            counts.counts, counts.low_sums, counts.format, counts.first, counts.last
        )
        square, second, fourth = pc.narrow_powers(
            counts.counts,
            class_values(counts.format),
            counts.first,
            counts.last + 1,
            *total.split(n, 0),
        )
        return PowerSums(
            n_elements=n, total=total, magnitudes=magnitudes, max_abs=max_abs, exponent=0,
            squares=square, second=second, fourth=fourth, is_quotient_rounded_once=False,
        )  # fmt: skip

    def abs_percentiles(self, percentiles: Sequence[float]) -> list[float]:
        """Return percentiles of |w| over all elements, linear interpolation."""
        counts = self._counts
        wanted = percentiles_among(counts.n_elements, tuple(percentiles))
        classes = np.empty(wanted.ranks.size, dtype=np.int64)
        classes_of_ranks(counts.magnitudes, counts.first, wanted.ranks, classes)
        return wanted.interpolate(class_values(counts.format)[classes])


class WideElements:
    """Moments and percentiles of a finite float32 or float64 matrix: they need another look.

    Attributes:
        exponent: Powers are of w / 2**exponent; 0 for float32.
        sum_scale: By which |w| is multiplied before it is summed over groups of float64.
    """

    def __init__(self, counts: ElementCounts, percentiles: Sequence[float]) -> None:
        """Take closed counts and what percentiles of |w| will be asked for."""
        self._counts = counts
        self.exponent, self.sum_scale = 0, 1.0
        if counts.format.width == 64:
            lower_bound = float(class_values(counts.format)[counts.last])
            # The lower bound of the smallest denormals is zero, which has no exponent of its own.
            exponent = math.frexp(lower_bound)[1] if lower_bound else -_MOST_SCALED
            self.exponent = min(max(exponent, -_MOST_SCALED), _MOST_SCALED)
            self.sum_scale = _RAISED if lower_bound < _SAFE_TO_RAISE else 1 / _RAISED
        self._total, self._magnitudes = pc.exact_sums(
            counts.counts, counts.low_sums, counts.format, counts.first, counts.last
        )
        self._centre = self._total.split(counts.n_elements, self.exponent)
        self._powers = np.zeros((2, 2), dtype=np.float64)
        self._padded = np.zeros(N_LANES, dtype=counts.format.integer)
        self._has_powers = False
        ranks = percentiles_among(counts.n_elements, tuple(percentiles)).ranks
        self._last_rank = np.array([counts.n_elements - 1], dtype=np.int64)
        self._selection = RankSelection(
            np.union1d(ranks, self._last_rank),
            counts.magnitudes,
            key_bits=counts.format.width,
            limit=_MOST_SORTED if counts.format.width == 64 else _MOST_SORTED_SINGLE,
        )

    @property
    def scale(self) -> float:
        """By which w is multiplied before its powers are taken."""
        return math.ldexp(1.0, -self.exponent)

    @property
    def needs_another_pass(self) -> bool:
        """The elements have to be shown once more."""
        return not self._has_powers or self._selection.needs_another_pass

    def add_again(self, bits: NDArray[Any]) -> None:
        """Look at a block (r, C) of bits once more."""
        if not self._has_powers:
            add_row_powers(bits, self._padded, self.scale, *self._centre, self._powers)
        if self._selection.needs_another_pass:
            self._selection.search(bits.reshape(-1))

    def end_pass(self) -> None:
        """Take note that all elements were shown again."""
        self._has_powers = True
        if self._selection.needs_another_pass:
            self._selection.end_pass()

    def power_sums(self, squares: float) -> PowerSums:
        """Return the sums over all elements; `squares` is that of (w / 2**exponent)**2."""
        counts = self._counts
        max_abs = float(self._values_at(self._last_rank)[0])
        second, fourth = self._powers.sum(axis=1).tolist()
        return PowerSums(
            n_elements=counts.n_elements, total=self._total, magnitudes=self._magnitudes,
            max_abs=max_abs, exponent=self.exponent, squares=squares, second=second, fourth=fourth,
            is_quotient_rounded_once=counts.is_constant or counts.format.width == 64,
        )  # fmt: skip

    def abs_percentiles(self, percentiles: Sequence[float]) -> list[float]:
        """Return percentiles of |w| over all elements, linear interpolation."""
        wanted = percentiles_among(self._counts.n_elements, tuple(percentiles))
        return wanted.interpolate(self._values_at(wanted.ranks))

    def _values_at(self, ranks: NDArray[np.int64]) -> NDArray[np.float64]:
        width = self._counts.format.width
        keys = self._selection.keys(ranks) >> np.uint64(64 - width)
        values = keys.astype(self._counts.format.integer).view(f"f{width // 8}")
        return values.astype(np.float64)
