"""What happens to a block of rows: one kernel call, one look at each row while it is in cache."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_weights.compiled import kernel
from moe_weights.measure.double_double import add_to
from moe_weights.measure.element_access import tally
from moe_weights.measure.fingerprint import fingerprint_row
from moe_weights.measure.float_format import FORMATS
from moe_weights.measure.group_ratios import (
    RatioStore,
    count_row,
    rate_row,
    refuse_lowered,
    search_row,
)
from moe_weights.measure.pattern_counts import (
    FULL_NARROW,
    FULL_SINGLE,
    PENDING,
    ROW,
    count_double,
    count_special,
    empty_narrow,
    empty_single,
    special_of,
)
from moe_weights.measure.row_order import RowOrder, order_row
from moe_weights.measure.vector_lanes import N_LANES, add_centred_powers

# Powers are added in lanes over so many elements, then in two parts.
_STRETCH = 1024
# First magnitude classes of Inf and NaN.
_SINGLE_NOT_FINITE = FORMATS["float32"].not_finite_class
_DOUBLE_NOT_FINITE = FORMATS["float64"].not_finite_class
# Tells `order_row` that patterns were counted before.
_NOT_COUNTED = np.zeros(0, dtype=np.int64)


@kernel
def measure_narrow_rows(
    block: NDArray[Any],
    fast: NDArray[np.uint32],
    counts: NDArray[np.int64],
    state: NDArray[np.int64],
    keys: NDArray[np.uint64],
    fingerprint: NDArray[np.uint64],
    order: RowOrder,
    store: RatioStore,
) -> None:  # pragma: no cover
    """Do everything for rows of a 16-bit matrix; arguments as of the kernels that are called."""
    for r in range(block.shape[0]):
        row = block[r]
        if state[PENDING] + len(row) > FULL_NARROW:
            empty_narrow(fast, counts, state)
        state[PENDING] += len(row)
        fingerprint_row(row, keys, fingerprint)
        order_row(row, state[ROW], order, fast)
        rate_row(state[ROW], order, store)
        count_row(state[ROW], store)
        state[ROW] += 1


@kernel
def measure_single_rows(
    block: NDArray[np.uint32],
    packed: NDArray[np.uint64],
    counts: NDArray[np.int64],
    low_sums: NDArray[np.int64],
    first: np.uint32,
    state: NDArray[np.int64],
    keys: NDArray[np.uint64],
    fingerprint: NDArray[np.uint64],
    order: RowOrder,
    store: RatioStore,
) -> None:  # pragma: no cover
    """Do everything that needs no mean for rows of a float32 matrix."""
    for r in range(block.shape[0]):
        row = block[r]
        if state[PENDING] + len(row) > FULL_SINGLE:
            empty_single(packed, counts, low_sums, state)
        known = special_of(packed, _SINGLE_NOT_FINITE)
        if len(row) <= FULL_SINGLE:
            state[PENDING] += len(row)
            order_row(row, state[ROW], order, packed)
        else:
            for start in range(0, len(row), FULL_SINGLE):
                tally(row, start, min(FULL_SINGLE, len(row) - start), packed)
                empty_single(packed, counts, low_sums, state)
            order_row(row, state[ROW], order, counts)
            known = -1
        has_special = special_of(packed, _SINGLE_NOT_FINITE) != known
        mask, inf = np.uint32(0x7FFFFFFF), np.uint32(_SINGLE_NOT_FINITE << 16)
        count_special(row, first, mask, inf, has_special, state)
        fingerprint_row(row, keys, fingerprint)
        rate_row(state[ROW], order, store)
        count_row(state[ROW], store)
        state[ROW] += 1


@kernel
def measure_double_rows(
    block: NDArray[np.uint64],
    counts: NDArray[np.int64],
    low_sums: NDArray[np.int64],
    first: np.uint64,
    state: NDArray[np.int64],
    keys: NDArray[np.uint64],
    fingerprint: NDArray[np.uint64],
) -> None:  # pragma: no cover
    """Do everything that needs no scale for rows of a float64 matrix."""
    for r in range(block.shape[0]):
        row = block[r]
        known = special_of(counts, _DOUBLE_NOT_FINITE)
        count_double(row, counts, low_sums)
        has_special = special_of(counts, _DOUBLE_NOT_FINITE) != known
        mask, inf = np.uint64(0x7FFFFFFFFFFFFFFF), np.uint64(_DOUBLE_NOT_FINITE << 48)
        count_special(row, first, mask, inf, has_special, state)
        fingerprint_row(row, keys, fingerprint)


@kernel
def order_rows(
    block: NDArray[Any], number: int, order: RowOrder, store: RatioStore
) -> None:  # pragma: no cover
    """Add rows from `number` on where it matters in which order they stand; count their ratios."""
    for r in range(block.shape[0]):
        order_row(block[r], number + r, order, _NOT_COUNTED)
        rate_row(number + r, order, store)
        refuse_lowered(number + r, order, store)
        count_row(number + r, store)


@kernel
def add_row_powers(
    block: NDArray[Any],
    padded: NDArray[Any],
    scale: float,
    high: float,
    low: float,
    sums: NDArray[np.float64],
) -> None:  # pragma: no cover
    """Add the second and fourth powers of w * scale - (high + low).

    Args:
        block: (r, C) bits.
        padded: (16,) room for elements that do not fill the lanes.
        scale: Power of two.
        high: Centre, rounded.
        low: What the rounding left.
        sums: (2, 2) second and fourth powers, each in two parts.
    """
    for r in range(block.shape[0]):
        row = block[r]
        n_whole = len(row) // N_LANES * N_LANES
        for start in range(0, n_whole, _STRETCH):
            n_parts = min(_STRETCH, n_whole - start) // N_LANES
            second, fourth = add_centred_powers(row, start, n_parts, scale, high, low)
            sums[0, 0], sums[0, 1] = add_to(sums[0, 0], sums[0, 1], second)
            sums[1, 0], sums[1, 1] = add_to(sums[1, 0], sums[1, 1], fourth)
        for i in range(n_whole, len(row)):
            # Sixteen times the same element: the lanes' sum is exactly sixteen times its power.
            for lane in range(N_LANES):
                padded[lane] = row[i]
            second, fourth = add_centred_powers(padded, 0, 1, scale, high, low)
            sums[0, 0], sums[0, 1] = add_to(sums[0, 0], sums[0, 1], second / N_LANES)
            sums[1, 0], sums[1, 1] = add_to(sums[1, 0], sums[1, 1], fourth / N_LANES)


@kernel
def search_ratio_rows(
    block: NDArray[Any],
    order: RowOrder,
    store: RatioStore,
    j: int,
    first_digits: NDArray[np.uint8],
    prefixes: NDArray[np.uint64],
    shifts: NDArray[np.int64],
    counts: NDArray[np.int64],
    places: NDArray[np.int64],
    kept: NDArray[np.uint64],
) -> None:  # pragma: no cover
    """Make the ratios of some rows once more and search those of group size number `j`."""
    for r in range(block.shape[0]):
        order_row(block[r], 0, order, _NOT_COUNTED)
        rate_row(0, order, store)
        refuse_lowered(0, order, store)
        search_row(j, store, first_digits, prefixes, shifts, counts, places, kept)
